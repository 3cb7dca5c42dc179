"""Where in the run we are, as a handful of saturating numbers."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Scalar

FRACTION_CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_FRACTION = len(FRACTION_CENTRES)


def fraction_done(fraction: Scalar) -> Float[Array, "9"]:
    """tanh(10 (x - c)) for nine centres c; x is iteration / horizon and may exceed 1,
    where the features saturate (Metz et al., 2022, arXiv 2211.09760)."""
    return jnp.tanh(10.0 * (fraction - jnp.asarray(FRACTION_CENTRES, jnp.float32)))
