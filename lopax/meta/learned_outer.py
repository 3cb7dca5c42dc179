"""A learned optimizer as the outer optimizer: the rule that trains is learned, too.

Its theta, called phi here to tell it from the theta it trains, is part of the outer
optimizer's state: a checkpoint holds it, and a population can give every member one of
its own and exchange it on the way (Metz et al., "Training Learned Optimizers with
Randomly Initialized Learned Optimizers", 2021, arXiv 2101.07367).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from lopax._core.errors import ConfigError
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Count, Scalar, Theta
from lopax.architectures import ARCHITECTURES
from lopax.pretrained.index import list_weights, read_weights
from lopax.theta import bundled_weights, load_optimizer

SELF = "self"
"""The outer optimizer's name that stands for the rule being trained."""

S = TypeVar("S")


class LearnedState(NamedTuple):
    """State of `transformation`."""

    phi: Theta
    rule: Any  # the rule's own state, over the leaves it trains


class ScaledState(NamedTuple):
    """State of `scaled`."""

    multiplier: Scalar
    inner: Any


def names() -> list[str]:
    """What an outer optimizer that is learned may be called."""
    extra = [n for n in list_weights() if n not in ARCHITECTURES]
    return [SELF, *ARCHITECTURES, *extra]


def load(name: str, weights: str | None) -> tuple[LearnedOptimizer, Theta]:
    """A rule and its phi.

    **Arguments:**

    - `name`: an architecture, or bundled weights.
    - `weights`: a weights file, or bundled weights; None: those called `name`.

    Raises `UnknownName` if there are no such weights, and what `load_theta` raises.
    """
    file = bundled_weights(name) if weights is None else read_weights(weights)
    return load_optimizer(file, name if name in ARCHITECTURES else None, {})


def transformation(
    optimizer: LearnedOptimizer, phi: Theta | None, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` with phi in the state; the meta-loss is its loss (`value`).

    **Arguments:**

    - `phi`: what the state starts with; None in a transformation that only updates.
    - `num_steps`: outer steps, the rule's horizon.
    """

    def init(params: Any) -> LearnedState:
        if phi is None:
            raise ConfigError(
                f"the outer optimizer {optimizer.name!r} has no meta-parameters yet"
            )
        # A copy: phi may be the very theta that is being trained.
        own = jax.tree.map(lambda x: jnp.array(x, copy=True), phi)
        return LearnedState(own, optimizer.init(own, params, num_steps))

    def update(
        updates: Any, state: LearnedState, params: Any = None, *, value: Any, **_: Any
    ) -> tuple[Any, LearnedState]:
        updates, rule, _info = optimizer.update(
            state.phi, updates, state.rule, params, value=value
        )
        return updates, state._replace(rule=rule)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def scaled(
    rule: optax.GradientTransformation, multiplier: float
) -> optax.GradientTransformationExtraArgs:
    """`rule` with its updates multiplied by a number kept in the state."""
    inner = optax.with_extra_args_support(rule)

    def init(params: Any) -> ScaledState:
        return ScaledState(jnp.asarray(multiplier, jnp.float32), inner.init(params))

    def update(
        updates: Any, state: ScaledState, params: Any = None, **extra: Any
    ) -> tuple[Any, ScaledState]:
        updates, after = inner.update(updates, state.inner, params, **extra)
        updates = jax.tree.map(lambda u: state.multiplier * u, updates)
        return updates, state._replace(inner=after)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def adopt(
    optimizer: LearnedOptimizer, state: Any, phi: Theta, params: Any, num_steps: Count
) -> Any:
    """An outer optimizer's state in which every `LearnedState` begins anew with `phi`:
    accumulators and step counter as before the first step, `num_steps` to go."""
    fresh = LearnedState(phi, optimizer.init(phi, params, num_steps))
    return map_states(LearnedState, lambda _: fresh, state)


def map_states(kind: type[S], fn: Callable[[S], Any], state: Any) -> Any:
    """A (chained, nested) optimizer state with `fn` applied to its parts of a kind."""

    def is_kind(x: Any) -> bool:
        return isinstance(x, kind)

    return jax.tree.map(lambda x: fn(x) if is_kind(x) else x, state, is_leaf=is_kind)


def multiplier(state: Any) -> Scalar:
    """The product of the multipliers in a (chained, nested) optimizer state."""
    found = [jnp.ones((), jnp.float32)]
    map_states(ScaledState, lambda s: found.append(s.multiplier), state)
    return math.prod(found)  # type: ignore[return-value]
