"""Environments of gymnax (Lange, 2022) behind our protocol; needs the extra `rl`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lopax._core.errors import MissingExtra, TaskError
from lopax._core.types import Flag, Key, Scalar
from lopax.tasks.rl.environment import Environment


@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnvironment(Environment):
    """One gymnax environment with its parameters. Made by `from_gymnax`."""

    inner: Any
    parameters: Any
    shape: tuple[int, ...]
    actions: int

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def num_actions(self) -> int:
        return self.actions

    def reset(self, key: Key) -> tuple[Array, Any]:
        observation, state = self.inner.reset_env(key, self.parameters)
        return jnp.asarray(observation, jnp.float32), _strong(state)

    def step(
        self, key: Key, state: Any, action: Int[Array, ""]
    ) -> tuple[Array, Any, Scalar, Flag]:
        # `step_env` leaves the end of an episode to the caller. Since gymnax 1.0 its
        # flag means a terminal state only, and the time limit is asked for apart.
        observation, after, reward, done, _ = self.inner.step_env(
            key, state, action, self.parameters
        )
        if hasattr(self.inner, "is_truncated"):
            done = jnp.logical_or(done, self.inner.is_truncated(after, self.parameters))
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        return (
            jnp.asarray(observation, jnp.float32),
            after,
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.asarray(done, bool).reshape(()),
        )


def from_gymnax(environment: Any, parameters: Any = None) -> GymnaxEnvironment:
    """A gymnax environment, by name (`"CartPole-v1"`) or as the object that
    `gymnax.make` returns, with its default or the given parameters.

    Raises `MissingExtra` without gymnax, `TaskError` for an unknown name, an object
    that is no gymnax environment, or one with continuous actions.
    """
    if isinstance(environment, str):
        environment, parameters = _make(environment, parameters)
    name = getattr(environment, "name", type(environment).__name__)
    needed = ("reset_env", "step_env", "action_space")
    missing = [m for m in needed if not hasattr(environment, m)]
    if missing:
        raise TaskError(
            f"{name} is no gymnax environment (it has no {', '.join(missing)}); pass a "
            "gymnax name or what gymnax.make(...) returns first"
        )
    if parameters is None:
        parameters = environment.default_params
    space = environment.action_space(parameters)
    actions = getattr(space, "n", None)
    if actions is None:
        raise TaskError(
            f"gymnax environment {name!r} has continuous actions "
            f"({type(space).__name__}); these agents choose among finitely many. Use "
            "one with discrete actions (CartPole-v1, Acrobot-v1, MountainCar-v0, "
            "Breakout-MinAtar) or wrap it in one that maps 0, 1, ... to actions"
        )
    observation, _ = jax.eval_shape(
        lambda key: environment.reset_env(key, parameters), jax.random.key(0)
    )
    if not hasattr(observation, "shape"):
        raise TaskError(
            f"gymnax environment {name!r}: observations must be one array, are "
            f"{jax.tree.structure(observation)}"
        )
    return GymnaxEnvironment(environment, parameters, observation.shape, int(actions))


def _make(name: str, parameters: Any) -> tuple[Any, Any]:
    try:
        import gymnax
    except ImportError as error:
        package = error.name or "gymnax"
        raise MissingExtra(package, "rl", f"the environment {name!r}") from None
    try:
        made, defaults = gymnax.make(name)
    except (KeyError, ValueError) as error:
        raise TaskError(f"gymnax has no environment {name!r}: {error}") from None
    return made, defaults if parameters is None else parameters


def _strong(state: Any) -> Any:
    """Python numbers as arrays, without weak types, which would change in a step."""
    arrays = jax.tree.map(jnp.asarray, state)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), arrays)
