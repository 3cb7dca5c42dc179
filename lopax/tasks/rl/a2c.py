"""Advantage actor-critic as a task: rollout, loss, gradient (Mnih et al., 2016, arXiv
1602.01783, with the TD(lambda) errors of Schulman et al., 2016, arXiv 1506.02438)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.task import Task
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.tasks.rl import rollout
from lopax.tasks.rl.environment import check_environment
from lopax.tasks.rl.networks import ActorCritic, entropy, log_probability
from lopax.tasks.rl.rollout import Play, Trajectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class A2CConfig:
    """The agent; defaults as in Optim4RL's experiments (arXiv 2302.01470)."""

    envs: int = 64
    """Environments that every gradient is averaged over. In meta-training by the paper
    each agent has a single one, in use dozens: the noise in the gradients an optimizer
    sees differs accordingly, so set it with care."""
    length: int = 20
    """Steps of each environment between updates."""
    gamma: float = 0.995
    trace: float = 0.95
    """Lambda of TD(lambda)."""
    critic_weight: float = 0.5
    entropy_weight: float = 0.01
    reward_scale: float = 1.0
    """On what the agent learns from; returns are reported unscaled."""

    def __post_init__(self) -> None:
        check_range(self, "envs", low=1)
        check_range(self, "length", low=1)
        check_range(self, "gamma", low=0.0, high=1.0)
        check_range(self, "trace", low=0.0, high=1.0)
        check_range(self, "critic_weight", low=0.0)
        check_range(self, "entropy_weight", low=0.0)
        check_range(self, "reward_scale", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Agent(Task):
    """What agents learning to act in `environment` have in common: how they play.

    Raises `TaskError` if `environment` does not keep the protocol.
    """

    environment: Any
    """See `lopax.tasks.rl.Environment`; static."""
    network: ActorCritic = dataclasses.field(default_factory=ActorCritic)
    config: A2CConfig = dataclasses.field(default_factory=A2CConfig)

    def __post_init__(self) -> None:
        check_environment(self.environment)

    def _start(self, key: Key) -> tuple[Params, Play]:
        k_params, k_play = jax.random.split(key)
        env = self.environment
        shape = tuple(env.observation_shape)
        params = self.network.init(k_params, shape, env.num_actions)
        return params, rollout.start(env, k_play, self.config.envs)

    def _collect(self, params: Params, play: Play, key: Key) -> tuple[Play, Trajectory]:
        frozen = jax.lax.stop_gradient(params)
        return rollout.collect(
            self.environment,
            lambda seen: self.network.apply(frozen, seen)[0],
            play,
            key,
            self.config.length,
        )

    def _errors(self, trajectory: Trajectory, values: Array) -> Array:
        c = self.config
        return rollout.td_lambda(
            c.reward_scale * trajectory.rewards,
            trajectory.done,
            jax.lax.stop_gradient(values),
            c.gamma,
            c.trace,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class A2C(Agent):
    """An agent whose every loss is that of a fresh rollout by the present policy, which
    goes on where the last one stopped. See `Agent`.

    The task state is the `Play`. Actions, rewards and TD errors are constants to
    differentiation. The metric "return" is the mean over environments of the last
    finished episode. There is no data, so all splits are alike.
    """

    def init(self, key: Key) -> tuple[Params, Play]:
        return self._start(key)

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, Play]:
        del batch
        play, trajectory = self._collect(params, task_state, key)
        return self._objective(params, trajectory), play

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        del params, key, split
        return {"return": rollout.mean_return(task_state)}

    def _objective(self, params: Params, trajectory: Trajectory) -> Scalar:
        c = self.config
        logits, values = apply_over_time(self.network, params, trajectory)
        errors = self._errors(trajectory, values)
        logs = log_probability(logits[:-1], trajectory.actions)
        # The lambda-return is the constant that values are moved towards.
        targets = errors + jax.lax.stop_gradient(values[:-1])
        actor = -jnp.mean(logs * errors)
        critic = jnp.mean(jnp.square(targets - values[:-1]))
        spread = jnp.mean(entropy(logits[:-1]))
        return actor + c.critic_weight * critic - c.entropy_weight * spread


def apply_over_time(
    network: ActorCritic, params: Params, trajectory: Trajectory
) -> tuple[Array, Array]:
    """Logits [T + 1, E, actions] and values [T + 1, E] of all that was seen."""
    seen = jnp.concatenate([trajectory.observations, trajectory.final[None]])
    flat = seen.reshape(-1, *seen.shape[2:])
    logits, values = network.apply(params, flat)
    return logits.reshape(*seen.shape[:2], -1), values.reshape(seen.shape[:2])
