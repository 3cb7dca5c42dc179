"""Recurrent rules, which have no average of the gradient, before the first gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wait(
    grad: Float[Array, "*s"],
    old: Any,
    initial: Any,
    delta: Float[Array, "*s"],
    new: Any,
) -> tuple[Any, Any]:
    """The step and the next state, where elements wait for their first gradient: as
    long as it was always exactly zero they keep their first state and do not move.

    **Arguments:**

    - `old`, `new`: the state, any pytree of [*s, units].
    - `initial`: the first state of every element and array, [] or [units].
    """
    same = [jnp.all(x == initial, axis=-1) for x in jax.tree.leaves(old)]
    waiting = functools.reduce(jnp.logical_and, same, grad == 0.0)

    def keep(first: Array, moved: Array) -> Array:
        return jnp.where(waiting[..., None], first, moved)

    return jnp.where(waiting, 0.0, delta), jax.tree.map(keep, old, new)
