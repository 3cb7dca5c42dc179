"""Outputs of a matrix brought nearer to steps of one length, as NorMuon does.

Li et al. (2025, arXiv 2510.05491) divide each output's weights in an orthogonalised
step by the root of their mean square, averaged over the run. Here by a power of it, so
that at zero nothing changes and at one all outputs move about as far.
"""

from __future__ import annotations

import math

from lopax.rules.form import Keeps, Place, Steps, Sum
from lopax.rules.ops import Array, Ops

KEEPS = Keeps(line="output")
DECAY = 0.95
FURTHEST = 5.0
"""An output's log factor stays within +- this."""


def scaled(
    xp: Ops, place: Place, step: Array, second: Array, steps: Array, power: Array
) -> Steps:
    """(the step [*lead, *s] at about the norm it had, the next second moments).

    **Arguments:**

    - `second`: [*lead, out] mean squares of the outputs' steps so far, not corrected.
    - `steps`: [*lead] how many of them there are, with this one.
    - `power`: [] of the root mean square that an output is divided by.
    """
    out = place.reading[-1]
    others = tuple(a for a in place.all_axes if a != out)
    inputs = max(math.prod(place.shape[a] for a in others), 1)
    behind = tuple(a - place.rank for a in others)
    (squares,) = yield [Sum(xp.sum_squares(step, axis=behind), others)]
    second = xp.ema(second, squares / inputs, DECAY)
    known = 1.0 - xp.constant(DECAY) ** steps
    mean = second / known[..., None]
    (total,) = yield [Sum(xp.sum(mean, axis=(-1,)), (out,))]
    whole = total[..., None] / max(place.shape[out], 1)
    ratio = 0.5 * (xp.log(mean + 1e-30) - xp.log(whole + 1e-30))
    factor = xp.exp(-power * xp.clip(ratio, -FURTHEST, FURTHEST))
    sizes = (factor.shape[-1] if a == out else 1 for a in place.all_axes)
    return step * factor.reshape((*place.lead(step), *sizes)), second
