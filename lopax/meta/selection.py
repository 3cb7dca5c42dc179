"""Who is copied over whom in a population: small pure functions of the scores.

A strategy maps a key and the members' scores [P] (lower is better, +inf for a member
that is lost) to parents [P] int32: whom each member becomes a copy of, itself if it
stays. The best member always stays, and nobody becomes a copy of a lost one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lopax._core.registry import Registry
from lopax._core.types import Count, Key

Parents: TypeAlias = Int[Array, " P"]
Selection: TypeAlias = Callable[[Key, Float[Array, " P"]], Parents]

SELECTIONS: Registry[Selection] = Registry("selection strategy")
"""Every selection strategy of populations by name."""


@SELECTIONS.register("none")
def none(key: Key, scores: Float[Array, " P"]) -> Parents:
    """Everybody stays; lost members, too. The control of every experiment."""
    del key
    return _themselves(scores)


@SELECTIONS.register("truncation")
def truncation(key: Key, scores: Float[Array, " P"]) -> Parents:
    """The worse half, and whoever is lost, become copies of random members of the
    best third (Jaderberg et al., 2017, arXiv 1711.09846, with our fractions)."""
    size = scores.shape[0]
    order = jnp.argsort(scores)
    best_third = living_among(scores, max(1, size // 3))
    parents = order[jax.random.randint(key, (size,), 0, best_third)]
    worse_half = jnp.argsort(order) >= size - size // 2
    lost = ~jnp.isfinite(scores)
    go = (worse_half | lost) & ~jnp.all(lost)
    return jnp.where(go, parents, _themselves(scores)).astype(jnp.int32)


@SELECTIONS.register("winner_takes_all")
def winner_takes_all(key: Key, scores: Float[Array, " P"]) -> Parents:
    """Everybody becomes a copy of the best."""
    del key
    best = jnp.full(scores.shape, jnp.argmin(scores), jnp.int32)
    return jnp.where(jnp.any(jnp.isfinite(scores)), best, _themselves(scores))


def top_half(key: Key, scores: Float[Array, " P"]) -> Parents:
    """For each member a random one of the better half, never a lost one unless all
    are."""
    size = scores.shape[0]
    among = living_among(scores, (size + 1) // 2)
    picked = jnp.argsort(scores)[jax.random.randint(key, (size,), 0, among)]
    return picked.astype(jnp.int32)


def living_among(scores: Float[Array, " P"], first: int) -> Count:
    """[] how many of the `first` best are not lost; at least 1."""
    return jnp.clip(jnp.sum(jnp.isfinite(scores)), 1, first)


def _themselves(scores: Float[Array, " P"]) -> Parents:
    return jnp.arange(scores.shape[0], dtype=jnp.int32)
