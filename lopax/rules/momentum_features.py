"""What Learned Muon's network sees of a tensor, and a tensor of itself.

Agreement of the gradient and the momenta, signal to noise, the step against the weight,
shape, role and time: nothing that depends on the tensor's place in a network.
"""

from __future__ import annotations

import math
from typing import Any

from lopax.rules.form import Place, Steps
from lopax.rules.ops import Array, Ops

ROLES = ("matrix", "vector", "embedding")
TYPICAL_STEPS = 1000.0
"""Run length at which the learned power of the horizon is one."""
NUM_TRACES = 6
NUM_SUMMARIES = NUM_TRACES + 4 + len(ROLES)
"""The traced features, the size of the parameter, three of the shape, the role."""
NUM_INPUTS = NUM_SUMMARIES + 4
TRACE = 0.95
"""Decay of the running averages of a tensor's features."""
TYPICAL_SIDE = 128.0
HUGE = 1e14
"""Parameters count as no larger than this; squares of larger ones would overflow."""


def of_tensor(
    xp: Ops, place: Place, grad: Array, momenta: Array, num: int, param: Array
) -> Steps:
    """[*lead, 7] of one step: the six that are averaged over steps (cosines of the
    gradient with the first and the last of `num` momenta and of these, three log
    ratios of sizes), then the log root mean square of the parameter."""
    fast, slow = place.layer(momenta, 0), place.layer(momenta, num - 1)
    sums = yield [
        *(place.total_square(xp, x) for x in (grad, fast, slow)),
        place.total_product(xp, grad, fast),
        place.total_product(xp, grad, slow),
        place.total_product(xp, fast, slow),
        place.total(xp, xp.abs(grad)),
        place.total_square(xp, xp.clip(param, -HUGE, HUGE)),
    ]
    g, f, s, gf, gs, fs, size, weight = (x / place.size for x in sums)
    row = [
        _cosine(xp, gf, g, f),
        _cosine(xp, gs, g, s),
        _cosine(xp, fs, f, s),
        _log_ratio(xp, f, g),
        _log_ratio(xp, s, f),
        _log_ratio(xp, g, xp.square(size)),
        xp.log(xp.sqrt(weight) + 1e-30),
    ]
    return xp.stack(row, axis=-1)


def of_shape(place: Place) -> tuple[float, ...]:
    """What never changes: three features of the shape, then the role."""
    fan_in, out = (max(n, 1) for n in place.sides)
    return (
        math.log(min(fan_in, out) / TYPICAL_SIDE) / 2.0,
        math.log(out / fan_in) / 2.0,
        1.0 if place.rank >= 3 else 0.0,
        *(1.0 if place.role == r else 0.0 for r in ROLES),
    )


def traced(
    xp: Ops, traces: Array, summaries: Array, updates: Array
) -> tuple[Array, Array]:
    """[N, 6] the running averages with this step's features, and bias-corrected."""
    traces = TRACE * traces + (1.0 - TRACE) * summaries[:, :NUM_TRACES]
    steps = updates * xp.constant(1.0) + 1.0
    return traces, traces / (1.0 - xp.constant(TRACE) ** steps)


def inputs(
    xp: Ops, traces: Array, summaries: Array, log_sizes: Array, done: Any, horizon: Any
) -> Array:
    """[N, F] the network's inputs, each of order one."""
    num = summaries.shape[0]
    weight, static = summaries[:, NUM_TRACES], summaries[:, NUM_TRACES + 1 :]
    against = 0.25 * xp.clip(log_sizes - weight, -8.0, 8.0)
    common = [
        2.0 * done - 1.0,
        xp.exp(-done / 0.05),
        xp.exp(-(1.0 - done) / 0.05),
        0.5 * xp.log(horizon / TYPICAL_STEPS),
    ]
    common = xp.broadcast_to(xp.stack(common), (num, 4))
    return xp.concat([traces, against[:, None], static, common], axis=1)


def _cosine(xp: Ops, product: Array, power_a: Array, power_b: Array) -> Array:
    return product * xp.rsqrt(power_a * power_b + 1e-30)


def _log_ratio(xp: Ops, power_a: Array, power_b: Array) -> Array:
    """log sqrt(a / b) within +- 4, over 2."""
    log = 0.5 * (xp.log(power_a + 1e-30) - xp.log(power_b + 1e-30))
    return 0.5 * xp.clip(log, -4.0, 4.0)
