"""Playing: environments that go on from update to update, and what was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lopax._core.tree import select
from lopax._core.types import Key, Scalar

Policy = Callable[[Array], Array]
"""Observations [E, ...] to logits [E, actions]."""


class Play(NamedTuple):
    """E environments under way; a task carries it from one update to the next."""

    state: Any  # leaves [E, ...]
    observation: Float[Array, "E *s"]
    running: Float[Array, "E"]  # return of the present episode so far
    last: Float[Array, "E"]  # return of the last finished one
    episodes: Int[Array, "E"]  # finished ones


class Trajectory(NamedTuple):
    """T steps of E environments."""

    observations: Float[Array, "T E *s"]
    actions: Int[Array, "T E"]
    rewards: Float[Array, "T E"]
    done: Bool[Array, "T E"]
    final: Float[Array, "E *s"]  # what was seen after the last step


def start(environment: Any, key: Key, num: int) -> Play:
    """`num` environments at the start of an episode."""
    observation, state = jax.vmap(environment.reset)(jax.random.split(key, num))
    zeros = jnp.zeros((num,), jnp.float32)
    return Play(state, observation, zeros, zeros, jnp.zeros((num,), jnp.int32))


def collect(
    environment: Any, policy: Policy, play: Play, key: Key, length: int
) -> tuple[Play, Trajectory]:
    """Plays `length` steps in every environment; finished episodes start anew."""
    num = play.running.shape[0]

    def one(key: Key, state: Any, action: Any) -> Any:
        step_key, reset_key = jax.random.split(key)
        seen, state, reward, done = environment.step(step_key, state, action)
        seen, state = select(done, environment.reset(reset_key), (seen, state))
        return seen, state, reward, done

    def step(play: Play, key: Key) -> tuple[Play, Any]:
        act_key, env_key = jax.random.split(key)
        actions = jax.random.categorical(act_key, policy(play.observation))
        seen, state, reward, done = jax.vmap(one)(
            jax.random.split(env_key, num), play.state, actions
        )
        total = play.running + reward
        after = Play(
            state=state,
            observation=seen,
            running=jnp.where(done, 0.0, total),
            last=jnp.where(done, total, play.last),
            episodes=play.episodes + done,
        )
        return after, (play.observation, actions, reward, done)

    play, steps = jax.lax.scan(step, play, jax.random.split(key, length))
    seen, actions, rewards, done = steps
    return play, Trajectory(seen, actions, rewards, done, play.observation)


def mean_return(play: Play) -> Scalar:
    """[] mean over environments of the last finished episode's return; where none has
    finished, of the return so far."""
    return jnp.mean(jnp.where(play.episodes > 0, play.last, play.running))


def td_lambda(
    rewards: Float[Array, "T *n"],
    done: Bool[Array, "T *n"],
    values: Float[Array, "T1 *n"],
    gamma: float,
    trace: float,
) -> Float[Array, "T *n"]:
    """TD(lambda) errors: lambda-returns minus values (Schulman et al., 2016, arXiv
    1506.02438, equation 16).

    **Arguments:**

    - `values`: [T + 1, *n], the last one of what is seen after the last step. The end
        of an episode counts as terminal, also at a time limit.
    - `gamma`, `trace`: discount and lambda.
    """
    goes_on = 1.0 - done.astype(jnp.float32)
    errors = rewards + gamma * goes_on * values[1:] - values[:-1]

    def back(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        error, alive = now
        total = error + gamma * trace * alive * later
        return total, total

    start = jnp.zeros_like(values[0])
    return jax.lax.scan(back, start, (errors, goes_on), reverse=True)[1]
