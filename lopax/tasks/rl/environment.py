"""What an environment is: episodes as two pure functions.

An environment is a static object: what changes is the state that `reset` and `step`
return, so that thousands of copies run under `vmap` inside one compiled program.
Episodes are not restarted by the environment; `rollout.collect` does it.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lopax._core.errors import TaskError
from lopax._core.tree import describe
from lopax._core.types import Flag, Key, Scalar

PROTOCOL = (
    "an environment has observation_shape (a tuple), num_actions (an int), "
    "reset(key) -> (observation, state) and "
    "step(key, state, action) -> (observation, state, reward, done)"
)


class Environment(abc.ABC):
    """An episodic environment with finitely many actions.

    Any object with these four members serves as well; deriving is not needed.
    """

    @property
    @abc.abstractmethod
    def observation_shape(self) -> tuple[int, ...]:
        """Of one observation (float32)."""

    @property
    @abc.abstractmethod
    def num_actions(self) -> int:
        """Actions are 0, 1, ..., num_actions - 1."""

    @abc.abstractmethod
    def reset(self, key: Key) -> tuple[Array, Any]:
        """The first observation of an episode, and the state."""

    @abc.abstractmethod
    def step(
        self, key: Key, state: Any, action: Int[Array, ""]
    ) -> tuple[Array, Any, Scalar, Flag]:
        """Observation, state, reward [] and whether the episode is over []."""


def check_environment(environment: Any) -> None:
    """Raises `TaskError` unless `environment` keeps the protocol. Traces it once, and
    runs nothing."""
    name = type(environment).__name__
    _check_members(environment, name)
    shape = tuple(environment.observation_shape)
    key = jax.random.key(0)

    def episode(key: Key) -> tuple[Any, Any]:
        start = environment.reset(key)
        if not (isinstance(start, tuple) and len(start) == 2):
            raise TaskError(
                f"environment {name}: reset must return (observation, state)"
            )
        action = jnp.zeros((), jnp.int32)
        after = environment.step(key, start[1], action)
        if not (isinstance(after, tuple) and len(after) == 4):
            found = len(after) if isinstance(after, tuple) else type(after).__name__
            raise TaskError(
                f"environment {name}: step returned {found} values, must return "
                "(observation, state, reward, done)"
            )
        return start, after

    try:
        (first, state), (then, after, reward, done) = jax.eval_shape(episode, key)
    except (TypeError, AttributeError) as error:
        raise TaskError(
            f"environment {name} does not trace ({error}); {PROTOCOL}"
        ) from error
    for what, observation in (("reset", first), ("step", then)):
        if tuple(jnp.shape(observation)) != shape:
            raise TaskError(
                f"environment {name}: {what} gives observations of shape "
                f"{jnp.shape(observation)}, observation_shape says {shape}"
            )
    if jnp.shape(reward) != () or jnp.shape(done) != ():
        raise TaskError(
            f"environment {name}: reward and done must be scalars, have shapes "
            f"{jnp.shape(reward)} and {jnp.shape(done)}; copies are made with vmap"
        )
    before = describe(state)
    if describe(after) != before or jax.tree.structure(state) != jax.tree.structure(
        after
    ):
        raise TaskError(
            f"environment {name}: step changes the state's structure, shapes or dtypes "
            f"from {before} to {describe(after)}; both must be alike"
        )


def _check_members(environment: Any, name: str) -> None:
    """The messages for what people are most likely to pass."""
    if hasattr(environment, "step_env") and hasattr(environment, "default_params"):
        raise TaskError(
            f"{name} is a gymnax environment; wrap it: "
            "lopax.tasks.rl.from_gymnax(environment)"
        )
    if hasattr(environment, "unwrapped"):
        raise TaskError(
            f"{name} looks like a gymnasium environment, which keeps its state inside "
            "and cannot run in a compiled program. Use a functional one: "
            "lopax.tasks.rl.from_gymnax('CartPole-v1'), or your own, where " + PROTOCOL
        )
    members = ("observation_shape", "num_actions", "reset", "step")
    missing = [m for m in members if not hasattr(environment, m)]
    if missing:
        raise TaskError(f"{name} has no {', '.join(missing)}: {PROTOCOL}")
    actions = environment.num_actions
    if not isinstance(actions, int) or isinstance(actions, bool) or actions < 1:
        raise TaskError(
            f"environment {name}: num_actions = {actions!r}, but these agents choose "
            "among finitely many actions. Give the number of actions; for continuous "
            "ones, an environment that maps 0, 1, ... to action vectors"
        )
