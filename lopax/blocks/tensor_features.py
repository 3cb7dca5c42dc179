"""Summaries of a whole tensor, for networks that run once per tensor.

Everything is a few numbers of order one, finite for any finite tensor, also for one
without elements.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.lifting import shrunk
from lopax._core.types import Scalar


def log_magnitude(x: Array, scale: float = 1.0) -> Array:
    """log(1e-8 + |scale x|), clipped to +-5."""
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x * scale)), -5.0, 5.0)


def mean(x: Array) -> Scalar:
    """Mean over all elements; 0 if there are none."""
    return jnp.mean(x) if x.size else jnp.zeros((), jnp.float32)


def means(stack: Float[Array, "K *s"]) -> Float[Array, "K"]:
    """`mean` of each of several arrays of one shape."""
    if not stack.size:
        return jnp.zeros(stack.shape[:1], jnp.float32)
    return jnp.mean(stack, axis=tuple(range(1, stack.ndim)))


def variance(x: Array) -> Scalar:
    """Mean squared distance from the mean; 0 if there are no elements."""
    return mean(jnp.square(x - mean(x)))


def norm(x: Array) -> Scalar:
    """Euclidean norm over all elements."""
    small, scale = shrunk(x)
    return jnp.sqrt(jnp.sum(jnp.square(small))) / scale


def rank_one_hot(shape: tuple[int, ...]) -> Float[Array, "5"]:
    """One-hot number of dimensions larger than one; all zeros from five up."""
    return jax.nn.one_hot(sum(n > 1 for n in shape), 5, dtype=jnp.float32)


def log_shape(shape: tuple[int, ...]) -> Float[Array, "4"]:
    """log(size) - 1 of four dimensions; missing ones count as size 1, and those from
    the fourth on are folded into one."""
    sizes = [*shape[:3], 1, 1, 1][:3]
    last = 1
    for n in shape[3:]:
        last *= n
    return jnp.log(jnp.maximum(jnp.asarray([*sizes, last], jnp.float32), 1.0)) - 1.0


def flag(condition: bool) -> Scalar:
    """+1 or -1."""
    return jnp.asarray(1.0 if condition else -1.0, jnp.float32)


def in_name_order(features: dict[str, Array]) -> Float[Array, "F"]:
    """Concatenates scalars and vectors in alphabetical order of their names, the
    order in which the published networks read them."""
    return jnp.concatenate([jnp.atleast_1d(features[k]) for k in sorted(features)])
