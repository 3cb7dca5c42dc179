"""Initial values the published optimizers used (Haiku's defaults)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Key


def truncated_normal(key: Key, shape: tuple[int, ...], std: float) -> Array:
    """`std` times a standard normal truncated at +-2 (float32).

    As in Haiku, the result is not rescaled: its standard deviation is 0.88 `std`.
    """
    unit = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    return std * unit


def fan_in_normal(key: Key, fan_in: int, fan_out: int) -> Float[Array, "i o"]:
    """Weights [fan_in, fan_out], `truncated_normal` with 1/sqrt(fan_in)."""
    return truncated_normal(key, (fan_in, fan_out), 1.0 / math.sqrt(fan_in))


def linear(key: Key, fan_in: int, fan_out: int) -> dict[str, Array]:
    """{"w": [fan_in, fan_out], "b": [fan_out]} with zero bias."""
    return {
        "w": fan_in_normal(key, fan_in, fan_out),
        "b": jnp.zeros((fan_out,), jnp.float32),
    }
