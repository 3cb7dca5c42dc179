"""Numbers of many orders of magnitude as numbers of order one, and their order."""

from __future__ import annotations

import math

from lopax.rules.ops import Array, Arrays, Ops


def log_magnitude(xp: Ops, x: Array, scale: float = 1.0) -> Array:
    """log(1e-8 + |scale x|), clipped to +-5."""
    return xp.clip(xp.log(1e-8 + xp.abs(x * scale)), -5.0, 5.0)


def log_and_sign(xp: Ops, grad: Array, log_range: float) -> Array:
    """[..., 2]: log|g| / r and sign(g) where |g| > exp(-r), else -1 and exp(r) g, with
    r = `log_range` (Andrychowicz et al., 2016, arXiv 1606.04474, appendix A)."""
    smallest = math.exp(-log_range)
    log = xp.log(xp.maximum(xp.abs(grad), smallest)) / log_range
    sign = xp.clip(grad / smallest, -1.0, 1.0)
    return xp.stack([log, sign], axis=-1)


def log_shape(shape: tuple[int, ...]) -> list[float]:
    """log(size) - 1 of four dimensions; missing ones count as size 1, and those from
    the fourth on are folded into one."""
    sizes = [*[*shape[:3], 1, 1, 1][:3], math.prod(shape[3:])]
    return [math.log(max(n, 1)) - 1.0 for n in sizes]


def in_name_order(features: Arrays) -> list[Array]:
    """Features in alphabetical order of their names, the order in which the published
    networks read them."""
    return [features[name] for name in sorted(features)]
