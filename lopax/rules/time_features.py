"""Where in the run we are, as a handful of saturating numbers."""

from __future__ import annotations

import math

from lopax.rules.ops import Array, Ops

TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
NUM_TIME = len(TIME_SCALES)


def tanh_of_step(xp: Ops, step: Array) -> Array:
    """tanh(t / s - 1) [11] for eleven time scales s from 1 to 1e5 steps; each rises
    once, around step s (Metz et al., 2022, arXiv 2203.11860). `step`: []."""
    return xp.tanh(step / xp.constant(TIME_SCALES) - 1.0)


def sine_of_step(xp: Ops, step: Array) -> Array:
    """sin(t / (pi s)) [11] for the same scales (Metz et al., 2020, arXiv 2009.11243).

    The period is 2 pi^2 s, not s: kept, because the published weights saw that.
    """
    return xp.sin(step / (xp.constant(TIME_SCALES) * math.pi))
