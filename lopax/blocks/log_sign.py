"""Gradients over many orders of magnitude as two numbers of order one."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_and_sign(grad: Array, log_range: float) -> Float[Array, "*s 2"]:
    """log|g| / r and sign(g) where |g| > exp(-r), else -1 and exp(r) g, with
    r = `log_range` (Andrychowicz et al., 2016, arXiv 1606.04474, appendix A)."""
    smallest = math.exp(-log_range)
    size = jnp.maximum(jnp.abs(grad), smallest)
    log = jnp.log(size) / log_range
    sign = jnp.clip(grad / smallest, -1.0, 1.0)
    return jnp.stack([log, sign], axis=-1)
