"""Changing the length of a run that has begun: `lopax.extend`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lopax._core import lifting
from lopax._core.errors import ConfigError
from lopax._core.optimizer import OptState
from lopax._core.types import Count
from lopax.architectures.described import XP
from lopax.optax.states import AccumulationState
from lopax.rules import loss_history
from lopax.rules.loss_history import LossHistory


@lifting.own_arithmetic
def extend(state: Any, num_steps: Any) -> Any:
    """The same optimizer state for a run of `num_steps` updates in all.

    Works on any pytree with lopax states in it (`optax.chain`, `masked`,
    `multi_transform`, `MultiSteps`, a train state) and under `jit`. The fraction of
    training done becomes updates made / `num_steps`; the averages of the loss get the
    time constants of the new length and keep their values. Extending a fresh state
    gives exactly the state of a run that was meant to be so long. Where gradients are
    accumulated (`accumulate_beyond`, or `optax.MultiSteps` around it), their number
    per step stays: with `accumulate_beyond`, `num_steps` counts gradients, as it does
    there; with `MultiSteps`, it counts real updates.

    **Arguments:**

    - `num_steps`: [] the new total, not the number of additional steps; may be traced.

    Raises `ConfigError` if there is no lopax state in `state`, or for a `num_steps`
    that is not a whole number of at least 1.
    """
    found, extended = _extend(state, lifting.horizon(num_steps))
    if not found:
        raise ConfigError(
            "extend: there is no state of a lopax optimizer in "
            f"{type(state).__name__}; give it what opt.init(params) or opt.update(...) "
            "returned, alone or inside a larger pytree"
        )
    return extended


def _extend(tree: Any, num_steps: Count) -> tuple[int, Any]:
    """How many lopax states there are, and the tree with all of them extended."""
    found = 0

    def one(node: Any) -> Any:
        nonlocal found
        if isinstance(node, AccumulationState):
            (every,) = jax.tree.leaves(node.every)
            per_step = jnp.maximum(num_steps // every, 1)
            inside, inner = _extend(node.inner, per_step)
            found += inside
            return node._replace(inner=inner)
        if isinstance(node, OptState):
            found += 1
            return _retime(node, num_steps)
        return node

    kinds = (AccumulationState, OptState)
    extended = jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, kinds))
    return found, extended


def _retime(state: OptState, num_steps: Count) -> OptState:
    """Replaces numbers only, so that whatever wraps them (Flax NNX variables) stays.

    `state` may have leading axes (replicated or vmapped states).
    """
    (old,) = jax.tree.leaves(state.num_steps)

    def one_history(old: Count, *arrays: Any) -> tuple[Any, ...]:
        return tuple(loss_history.retime(XP, LossHistory(*arrays), old, num_steps))

    for _ in range(jnp.ndim(old)):
        one_history = jax.vmap(one_history)

    def history(node: Any) -> Any:
        if not isinstance(node, LossHistory):
            return node
        arrays, treedef = jax.tree.flatten(node)
        return treedef.unflatten(one_history(old, *arrays))

    return state._replace(
        num_steps=jax.tree.map(
            # A copy: an array that two states share could not be donated.
            lambda x: jnp.array(jnp.broadcast_to(num_steps, jnp.shape(x)), copy=True),
            state.num_steps,
        ),
        shared=jax.tree.map(
            history, state.shared, is_leaf=lambda x: isinstance(x, LossHistory)
        ),
    )
