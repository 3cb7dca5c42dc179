"""Where in the run we are, as a handful of saturating numbers."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Count, Scalar

FRACTION_CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_FRACTION = len(FRACTION_CENTRES)

TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
NUM_TIME = len(TIME_SCALES)


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


def sine_of_step(step: Count) -> Float[Array, "11"]:
    """sin(t / (pi s)) for the same scales (Metz et al., 2020, arXiv 2009.11243).

    The period is 2 pi^2 s, not s: kept, because the published weights saw that.
    """
    scales = jnp.asarray(TIME_SCALES, jnp.float32) * jnp.pi
    return jnp.sin(step.astype(jnp.float32) / scales)
