"""A step of a known size: a direction as an orthogonal matrix, partly as it is."""

from __future__ import annotations

import math

from lopax.rules.form import Place, Steps
from lopax.rules.ops import Array, Ops


def step(
    xp: Ops,
    place: Place,
    direction: Array,
    sizes: Array,
    method: str,
    blends: Array | None = None,
) -> Steps:
    """[*lead, *s] `sizes` [*lead] times the direction as an orthogonal matrix, of
    spectral norm sqrt(out / in) if that is above one (Jordan et al., 2024).

    **Arguments:**

    - `direction`: [*lead, *s]; a tensor of rank above two is one matrix, its last axis
        the output.
    - `method`: how, one of `_core.polar.CHOICES`.
    - `blends`: [*lead] the share of the plain direction, of the same Frobenius norm.
    """
    fan_in, out = (max(n, 1) for n in place.sides)
    flat = place.as_matrix(direction)
    moved = yield from xp.orthogonalize(flat, place, method)
    moved = moved.reshape(direction.shape)
    sizes = sizes * math.sqrt(max(1.0, out / fan_in))
    if blends is None:
        return place.column(sizes) * moved
    plain, unit = yield from unit_norm(xp, place, direction)
    whole = sizes * blends * unit * math.sqrt(min(fan_in, out))
    shares = [place.column(w) for w in (sizes * (1.0 - blends), whole)]
    return xp.mix(shares, [moved, plain])


def unit_norm(xp: Ops, place: Place, x: Array) -> Steps:
    """(y, w) with w y = x over its Frobenius norm, w [*lead]; zero for zero."""
    (size,) = yield [place.total(xp, xp.abs(x))]
    size = size / place.size
    x = x / place.column(xp.where(size > 0.0, size, 1.0))
    (square,) = yield [place.total_square(xp, x)]
    return x, xp.rsqrt(xp.maximum(square, 1e-12))
