"""How large a network's weights are, relative to what their shapes usually have.

For rules whose steps have a size of their own: where all weights are a hundred times
larger or smaller than usual, so should the steps be.

A matrix is compared with 1 / sqrt(fan in). The ratio of the network is the median over
its matrices that are not zero, and one within a factor of `BAND`; a matrix that is off
the network's by more than `OWN_BAND` has its own. Everything else, and matrices of
zeros, follow the network. Where there is no matrix at all the vectors are the weights:
each counts by its root mean square, but at least as one.
"""

from __future__ import annotations

import math

from lopax.rules.form import Place, Steps
from lopax.rules.ops import Array, Ops

BAND = 5.0
"""Networks whose weights are within this factor of the usual size are usual."""
OWN_BAND = 20.0
"""A matrix further than this from the rest of its network counts by itself."""
_ZERO, _HUGE = -80.0, 1e17
_TINY = 2e-38
"""Not below the smallest number that a program may not take for zero (1.2e-38)."""


MATRIX, VECTOR, OTHER = 1.0, 0.0, -1.0
"""What a tensor is to its network, as `measure` writes it."""
KINDS = {"matrix": MATRIX, "vector": VECTOR, "embedding": OTHER}
"""The same by role."""


def measure(xp: Ops, place: Place, param: Array, kind: float) -> Steps:
    """[*lead, 2] log of the tensor's size relative to the usual, and its `kind`."""
    # In two steps, so that no square leaves float32's range.
    param = xp.clip(param, -_HUGE, _HUGE)
    (size,) = yield [place.total(xp, xp.abs(param))]
    mean = size / place.size
    unit = param / place.column(xp.where(mean > 0.0, mean, 1.0))
    (square,) = yield [place.total_square(xp, unit)]
    # The slope of the root at zero is infinite.
    square = xp.where(mean > 0.0, square / place.size, 1.0)
    log = xp.log(mean * xp.sqrt(square) + _TINY)
    log = log + 0.5 * math.log(max(place.sides[0], 1))
    return xp.stack([log, 0.0 * mean + kind], axis=-1)


def usual(xp: Ops, starts: Array) -> Array:
    """[] log ratio of the network, from what was measured of all tensors [N, 2]."""
    if not starts.shape[0]:
        return xp.zeros(())
    known = (starts[:, 1] > 0.5) & (starts[:, 0] > _ZERO)
    count = xp.sum(known * xp.constant(1.0))
    ordered = xp.sort(xp.where(known, starts[:, 0], math.inf))
    low = xp.maximum((count - 1.0) * 0.5, 0.0)
    # The mean of the two in the middle; one and the same if their number is odd.
    middle = 0.5 * (xp.take(ordered, low) + xp.take(ordered, low + 0.5))
    return xp.where(count > 0.5, middle, 0.0)


def ratios(xp: Ops, starts: Array, usual: Array) -> Array:
    """[N] how much larger each tensor is than usual, 1 where it is about usual."""
    known = (starts[:, 1] > 0.5) & (starts[:, 0] > _ZERO)
    far = known & (xp.abs(starts[:, 0] - usual) > math.log(OWN_BAND))
    own = xp.where(far, starts[:, 0], usual + xp.zeros((starts.shape[0],)))
    return xp.where(xp.abs(own) > math.log(BAND), xp.exp(own), 1.0)


def alone(xp: Ops, starts: Array) -> Array:
    """[] 1 if none of all tensors is a matrix, else 0."""
    matrices = xp.sum((starts[:, 1] > 0.5) * xp.constant(1.0))
    return (matrices < 0.5) * xp.constant(1.0)


def with_vectors(
    xp: Ops, starts: Array, usual: Array, alone: Array, size: Array
) -> Array:
    """[N] `ratios`, and where the network has no matrix (`alone` [] is 1), of vectors
    their own, which are at least 1, times `size` []: they take a matrix's place."""
    vectors = (xp.abs(starts[:, 1] - VECTOR) < 0.5) & (alone > 0.5)
    own = xp.exp(xp.clip(starts[:, 0], 0.0, math.log(_HUGE))) * size
    return xp.where(vectors, own, ratios(xp, starts, usual))
