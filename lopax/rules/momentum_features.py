"""What Learned Muon's network sees of a tensor, and a tensor of itself.

Agreement of the gradient and the momenta, signal to noise, the step against the weight,
shape, role and time: nothing that depends on the tensor's place in a network.
"""

from __future__ import annotations

import math
from typing import Any

from lopax._core.run import Run
from lopax.rules import layers
from lopax.rules.form import Place, Steps
from lopax.rules.ops import Array, Draw, Ops

ROLES = ("matrix", "vector", "embedding")
TYPICAL_STEPS = 1000.0
"""Run length at which the learned power of the horizon is one."""
NUM_TRACES = 6
SIGNAL = slice(0, 2)
WEIGHT = SIGNAL.stop + NUM_TRACES
KERNEL = WEIGHT + 1
SHAPE = slice(KERNEL + 1, KERNEL + 3)
NUM_SUMMARIES = SHAPE.stop + 1 + len(ROLES)
"""Two of its signal, the traced features, the size of the parameter, whether it is a
convolution's kernel, three of the shape, the role."""
NUM_INPUTS = NUM_SUMMARIES - SIGNAL.stop - 1 + 4
TRACE = 0.95
"""Decay of the running averages of a tensor's features."""
TYPICAL_SIDE = 128.0
CORNER = 128
"""Of a tensor with more than one axis, the signal is read from so many indices an
axis: enough to tell, and next to nothing to pay."""
WIDEST = 16
"""Of a convolution's window, in elements."""
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


def confirmed(xp: Ops, place: Place, grad: Array, momentum: Array) -> Steps:
    """[*lead, 2] <g, m> and <m, m> of a momentum and the next gradient.

    The first over the second is the share of the momentum that the gradient confirms:
    about one while the way goes on, about -1 where every step overshoots and the next
    gradient takes it back, and about zero where gradients are mostly noise. On a
    network of 8x8 images it is -0.8, -0.5, -0.2 and 0 for batches of 256, 64, 16, 4.
    Read from the tensor's corner (of a sharded tensor, from each shard's).
    """
    if place.rank > 1:
        corner = (..., *(slice(CORNER),) * place.rank)
        grad, momentum = grad[corner], momentum[corner]
    sums = yield [
        place.total_product(xp, grad, momentum),
        place.total_square(xp, momentum),
    ]
    return xp.stack(sums, axis=-1)


def signal(
    xp: Ops, kept: Array, summaries: Array, decay: float, run: Run, horizon: Array
) -> tuple[Array, Array]:
    """What is kept [3] after this step, and two features [2] of the network: how far
    gradients have gone against the momenta, and how far they go with them, in [0, 1].

    The mean of the matrices counts, or of all tensors if there is none. Kept are its
    running average, that of what is known, and the furthest that the average was
    below zero, which is forgotten over a run's length: small steps at a run's end
    overshoot less, and that is no noise. `decay` is the momenta's, which are not
    bias-corrected.
    """
    known = 1.0 - xp.constant(decay) ** (run.updates * xp.constant(1.0))
    product, square = summaries[:, SIGNAL.start], summaries[:, SIGNAL.start + 1]
    sure = xp.isfinite(product) & xp.isfinite(square) & (square > 1e-30)
    share = known * xp.where(sure, product, 0.0) / xp.where(sure, square, 1.0)
    weights = sure * (summaries[:, -len(ROLES)] + 1e-6)
    total = xp.sum(weights)
    now = xp.sum(weights * xp.clip(share, -1.0, 1.0)) / xp.maximum(total, 1e-7)
    seen = (total > 0.0) * xp.constant(1.0)
    averages = TRACE * kept[:2] + (1.0 - TRACE) * xp.stack([now * seen, seen])
    mean = averages[0] / xp.maximum(averages[1], 1e-3)
    against = xp.maximum(-mean, kept[2] * xp.exp(-1.0 / horizon))
    features = xp.stack([against, xp.maximum(mean, 0.0)])
    return xp.concat([averages, against[None]]), features


def summary(
    xp: Ops,
    place: Place,
    grad: Array,
    momenta: Array,
    num: int,
    param: Array,
    *,
    signal: bool,
    network: bool,
) -> Steps:
    """[*lead, `NUM_SUMMARIES`] of one step, with zeros for what is not asked for."""
    static, lead = of_shape(place), place.lead(param)
    share, features = xp.zeros((*lead, 2)), xp.zeros((*lead, NUM_TRACES + 1))
    if signal:
        share = yield from confirmed(xp, place, grad, place.layer(momenta, 0))
    if network:
        features = yield from of_tensor(xp, place, grad, momenta, num, param)
    static = xp.broadcast_to(xp.constant(static), (*lead, len(static)))
    return xp.concat([share, features, static], axis=-1)


def of_shape(place: Place) -> tuple[float, ...]:
    """What never changes: whether it is a convolution's kernel, three features of the
    shape, then the role."""
    fan_in, out = (max(n, 1) for n in place.sides)
    return (
        float(is_kernel(place)),
        math.log(min(fan_in, out) / TYPICAL_SIDE) / 2.0,
        math.log(out / fan_in) / 2.0,
        1.0 if place.rank >= 3 else 0.0,
        *(1.0 if place.role == r else 0.0 for r in ROLES),
    )


def is_kernel(place: Place) -> bool:
    """Whether a tensor is, by its shape, the kernel of a convolution over two axes or
    more: attention's projections may have three axes, or one that is too long."""
    window = place.sizes[:-2]
    return len(window) > 1 and math.prod(window) > 1 and max(window) <= WIDEST


def init_network(draw: Draw, key: Any, hidden: int, outputs: int) -> Any:
    """A layer of `hidden` units and a head, which is zero."""
    head = {"w": draw.full((hidden, outputs)), "b": draw.full((outputs,))}
    return {"hidden": layers.linear(draw, key, NUM_INPUTS, hidden), "head": head}


def network(
    xp: Ops,
    theta: Any,
    traces: Array,
    summaries: Array,
    sizes: Array,
    run: Run,
    horizon: Array,
) -> tuple[Array, Array]:
    """[N, 6] the running averages with this step's features, and [N, outputs] what the
    network says, within +- 3."""
    traces = TRACE * traces + (1.0 - TRACE) * summaries[:, SIGNAL.stop : WEIGHT]
    steps = run.updates * xp.constant(1.0) + 1.0
    seen = traces / (1.0 - xp.constant(TRACE) ** steps)
    log_sizes = xp.log(sizes + 1e-30)
    inputs = _inputs(xp, seen, summaries, log_sizes, run.fraction, horizon)
    hidden = xp.tanh(layers.affine(xp, theta["hidden"], inputs))
    return traces, 3.0 * xp.tanh(layers.affine(xp, theta["head"], hidden) / 3.0)


def _inputs(
    xp: Ops, traces: Array, summaries: Array, log_sizes: Array, done: Any, horizon: Any
) -> Array:
    """[N, F] the network's inputs, each of order one."""
    num = summaries.shape[0]
    weight, static = summaries[:, WEIGHT], summaries[:, SHAPE.start :]
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
