"""Summaries of a whole tensor, for networks that run once per tensor.

Everything is a few numbers of order one, finite for any finite tensor, also for one
without elements.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Scalar


def mean(x: Array) -> Scalar:
    """Mean over all elements; 0 if there are none."""
    return jnp.mean(x) if x.size else jnp.zeros((), jnp.float32)


def means(stack: Float[Array, "K *s"]) -> Float[Array, "K"]:
    """`mean` of each of several arrays of one shape."""
    if not stack.size:
        return jnp.zeros(stack.shape[:1], jnp.float32)
    return jnp.mean(stack, axis=tuple(range(1, stack.ndim)))


def rank_one_hot(shape: tuple[int, ...]) -> Float[Array, "5"]:
    """One-hot number of dimensions larger than one; all zeros from five up."""
    return jax.nn.one_hot(sum(n > 1 for n in shape), 5, dtype=jnp.float32)
