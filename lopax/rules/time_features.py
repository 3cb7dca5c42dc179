"""Where in the run we are: saturating numbers of the step, and curves over the run."""

from __future__ import annotations

import math

from lopax.rules.ops import Array, Ops

FRACTION_CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
NUM_TIME = len(TIME_SCALES)


def fraction_done(xp: Ops, fraction: Array) -> Array:
    """tanh(10 (x - c)) [9] for nine centres c; x [] is iteration / horizon (Metz et
    al., 2022, arXiv 2211.09760)."""
    return xp.tanh(10.0 * (fraction - xp.constant(FRACTION_CENTRES)))


def tanh_of_step(xp: Ops, step: Array) -> Array:
    """tanh(t / s - 1) [11] for eleven time scales s from 1 to 1e5 steps; each rises
    once, around step s (Metz et al., 2022, arXiv 2203.11860). `step`: []."""
    return xp.tanh(step / xp.constant(TIME_SCALES) - 1.0)


def sine_of_step(xp: Ops, step: Array) -> Array:
    """sin(t / (pi s)) [11] for the same scales (Metz et al., 2020, arXiv 2009.11243).

    The period is 2 pi^2 s, not s: kept, because the published weights saw that.
    """
    return xp.sin(step / (xp.constant(TIME_SCALES) * math.pi))


def at_knots(xp: Ops, values: Array, fraction: Array) -> Array:
    """[] the value at a fraction [] in [0, 1] of the run, piecewise linear between
    `values` [K] at equally spaced knots."""
    last = values.shape[0] - 1
    places = xp.constant(tuple(range(last + 1)))
    hats = xp.maximum(1.0 - xp.abs(fraction * last - places), 0.0)
    return xp.sum(hats * values)


def warm_up(xp: Ops, share: float, fraction: Array, horizon: Array) -> Array:
    """[] from 1 / (share of the horizon) in the first step to 1 after that share."""
    ramp = xp.maximum(share * horizon, 1.0)
    return xp.minimum((fraction * horizon + 1.0) / ramp, 1.0)
