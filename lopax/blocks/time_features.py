"""Where in the run we are, as a handful of saturating numbers."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Count, Scalar
from lopax.rules.time_features import FRACTION_CENTRES, TIME_SCALES

NUM_FRACTION = len(FRACTION_CENTRES)


def fraction_done(fraction: Scalar) -> Float[Array, "9"]:
    """tanh(10 (x - c)) for nine centres c; x is iteration / horizon and may exceed 1,
    where the features saturate (Metz et al., 2022, arXiv 2211.09760)."""
    return jnp.tanh(10.0 * (fraction - jnp.asarray(FRACTION_CENTRES, jnp.float32)))


def tanh_of_step(step: Count) -> Float[Array, "11"]:
    """tanh(t / s - 1) for eleven time scales s from 1 to 1e5 steps; each rises once,
    around step s (Metz et al., 2022, arXiv 2203.11860)."""
    return jnp.tanh(
        step.astype(jnp.float32) / jnp.asarray(TIME_SCALES, jnp.float32) - 1.0
    )
