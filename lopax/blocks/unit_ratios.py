"""How large a network's weights are, relative to what their shapes usually have.

For rules whose steps have a size of their own: where all weights are a hundred times
larger or smaller than usual, so should the steps be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopax._core.lifting import rms

BAND = 5.0
"""Networks whose weights are within this factor of the usual size are usual."""
OWN_BAND = 20.0
"""A matrix further than this from the rest of its network counts by itself."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(in, out): all axes but the last together, and the last."""
    return math.prod(shape[:-1]), shape[-1]


def unit_ratios(
    tensors: Sequence[Array], is_matrix: Sequence[bool]
) -> Float[Array, "N"]:
    """How much larger each tensor [*s] is than usual, 1 where it is about usual.

    A matrix is compared with 1 / sqrt(fan in). The ratio of the network is the median
    over its matrices that are not zero, and one within a factor of `BAND`; a matrix
    that is off the network's by more than `OWN_BAND` has its own. Everything else, and
    matrices of zeros, follow the network.
    """
    if not tensors:
        return jnp.ones((0,), jnp.float32)
    fans = [max(matrix_shape(x.shape)[0], 1) for x in tensors]
    logs = [
        jnp.log(rms(x) + 1e-38) + 0.5 * math.log(n)
        for x, n in zip(tensors, fans, strict=True)
    ]
    log_ratios = jnp.stack(logs)
    known = np.asarray(is_matrix) & (log_ratios > -80.0)
    usual = jnp.nanmedian(jnp.where(known, log_ratios, jnp.nan))
    usual = jnp.where(jnp.any(known), usual, 0.0)
    far = known & (jnp.abs(log_ratios - usual) > math.log(OWN_BAND))
    own = jnp.where(far, log_ratios, usual)
    return jnp.where(jnp.abs(own) > math.log(BAND), jnp.exp(own), 1.0)
