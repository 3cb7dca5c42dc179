"""Scaling that keeps a network's inputs of order one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.lifting import shrunk
from lopax._core.sizes import SizeBounds
from lopax._core.types import Scalar


def safe_rsqrt(x: Array) -> Array:
    """1 / sqrt(max(x, 1e-9))."""
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


def rms_scale(x: Array, eps: float = 1e-5) -> Scalar:
    """The factor [] that brings a channel to unit root mean square.

    A channel stored in broadcastable form (size-1 axes) has the same mean as the
    full one, because broadcasting repeats every entry equally often.
    """
    if x.size == 0:
        return jnp.ones((), jnp.float32)
    return _rsqrt_or_zero(eps + jnp.mean(jnp.square(x)))


def matrix_rms_scale(x: Array, eps: float) -> Array:
    """`rms_scale` over the last two axes only: [..., 1, 1], or [1] for a vector."""
    if x.size == 0:
        return jnp.ones((), jnp.float32)
    axes = tuple(range(x.ndim))[-2:]
    return _rsqrt_or_zero(eps + jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def _rsqrt_or_zero(x: Array) -> Array:
    """1 / sqrt(x), and 0 for what has left float32's range. Of an infinity in a
    constant, compilers make what they like."""
    large = jnp.float32(3e38)
    return jnp.where(x < large, jax.lax.rsqrt(jnp.minimum(x, large)), 0.0)


def tensor_size(x: Array, bounds: SizeBounds, eps: float = 1e-9) -> Scalar:
    """sqrt(mean(x^2) + eps) [] over the whole tensor, kept within `bounds`."""
    if x.size == 0:
        return jnp.zeros((), jnp.float32)
    small, scale = shrunk(x)
    rms = jnp.sqrt(jnp.mean(jnp.square(small)) + eps * jnp.square(scale)) / scale
    return jnp.clip(rms, *bounds.of(x.shape))
