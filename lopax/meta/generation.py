"""One generation of a population: exploit, explore, bootstrap, as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lopax._core import tree as trees
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Key, Theta
from lopax.meta import learned_outer, selection
from lopax.meta.learned_outer import ScaledState
from lopax.meta.population_config import PopulationConfig
from lopax.meta.trainer import MetaState


class Generation(NamedTuple):
    """What one generation did; leaves [P]."""

    scores: Float[Array, " P"]  # before anybody was copied
    parents: Int[Array, " P"]  # whom each member is a copy of now; itself if it stayed
    donors: Int[Array, " P"]  # whose theta became its outer rule; -1: none did
    multipliers: Float[Array, " P"]  # from now on


def founders(scores: Float[Array, " P"], outer: Any) -> Generation:
    """The population before its first step; `outer` has leaves [P, ...]."""
    itself = jnp.arange(scores.shape[0], dtype=jnp.int32)
    return Generation(scores, itself, jnp.full_like(itself, -1), multipliers(outer))


def renew(
    config: PopulationConfig,
    rule: LearnedOptimizer,
    followed: Callable[[Theta], Any],
    members: MetaState,
    scores: Float[Array, " P"],
    key: Key,
    steps_left: Any,
) -> tuple[MetaState, Generation]:
    """The population after a generation.

    **Arguments:**

    - `rule`: the architecture that is trained, and that trains under `bootstrap`.
    - `followed`: what of a theta the outer optimizer sees.
    - `members`: leaves [P, ...]; the multipliers are in their outer states.
    - `scores`: lower is better, +inf for a lost member.
    - `steps_left`: [] int, the horizon of an outer rule that starts now.
    """
    select_key, explore_key, phi_key = jax.random.split(key, 3)
    parents = selection.SELECTIONS[config.selection](select_key, scores)
    copied = parents != jnp.arange(parents.shape[0])
    # A copy keeps its own key: it must not repeat its parent's noise.
    moved = jax.tree.map(lambda x: x[parents], members._replace(key=()))
    outer = explore(config.factors, moved.outer, copied, explore_key)
    donors = jnp.full_like(parents, -1)
    if config.bootstrap:
        chosen = selection.top_half(phi_key, scores)
        phis = jax.tree.map(lambda x: x[chosen], members.theta)

        def adopt(outer: Any, theta: Theta, phi: Theta, copied: Any) -> Any:
            params = followed(theta)
            fresh = learned_outer.adopt(rule, outer, phi, params, steps_left)
            return trees.select(copied, fresh, outer)

        outer = jax.vmap(adopt)(outer, moved.theta, phis, copied)
        donors = jnp.where(copied, chosen, donors)
    moved = moved._replace(outer=outer, key=members.key)
    return moved, Generation(scores, parents, donors, multipliers(outer))


def explore(
    factors: tuple[float, ...], outer: Any, copied: Bool[Array, " P"], key: Key
) -> Any:
    """Outer states in which the multipliers of copies are multiplied by a random one
    of the factors."""
    choices = jnp.asarray(factors, jnp.float32)
    drawn = choices[jax.random.randint(key, copied.shape, 0, len(factors))]
    factor = jnp.where(copied, drawn, 1.0)
    return learned_outer.map_states(
        ScaledState, lambda s: s._replace(multiplier=s.multiplier * factor), outer
    )


def multipliers(outer: Any) -> Float[Array, " P"]:
    """The members' update multipliers, from their outer states."""
    return jax.vmap(learned_outer.multiplier)(outer)
