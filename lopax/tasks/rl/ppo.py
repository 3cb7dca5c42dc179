"""Proximal policy optimization as a task: one gradient per minibatch (Schulman et al.,
2017, arXiv 1707.06347)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Batch, Count, Key, Params, Scalar, TaskState
from lopax.tasks.rl import rollout
from lopax.tasks.rl.a2c import A2CConfig, Agent, apply_over_time
from lopax.tasks.rl.networks import entropy, log_probability
from lopax.tasks.rl.rollout import Play


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(A2CConfig):
    """The agent; envs x length steps are split into `minibatches` in each epoch."""

    gamma: float = 0.97
    epochs: int = 4
    minibatches: int = 8
    clip: float = 0.3
    """How far the ratio of new to old probabilities may count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "epochs", low=1)
        check_range(self, "minibatches", low=1)
        check_range(self, "clip", above=0.0)
        if self.envs * self.length % self.minibatches:
            raise ConfigError(
                f"PPOConfig.minibatches = {self.minibatches}: must divide the "
                f"{self.envs} x {self.length} steps of a rollout"
            )


class Memory(NamedTuple):
    """A rollout, step by step, for several passes over it."""

    observations: Float[Array, "n *s"]
    actions: Int[Array, "n"]
    logs: Float[Array, "n"]  # log-probability when the action was taken
    advantages: Float[Array, "n"]
    targets: Float[Array, "n"]


class PPOState(NamedTuple):
    play: Play
    memory: Memory
    order: Int[Array, "n"]  # this epoch's permutation of the memory
    count: Count  # gradients taken  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PPO(Agent):
    """An agent whose every gradient is that of one minibatch; each epochs x minibatches
    gradients, a new rollout is played first. See `A2C` for what is played.

    `evaluate`, and so a meta-loss on a fresh batch, is the loss of a whole new rollout.
    """

    config: PPOConfig = dataclasses.field(default_factory=PPOConfig)

    def init(self, key: Key) -> tuple[Params, PPOState]:
        params, play = self._start(key)
        c = self.config
        shapes = jax.eval_shape(lambda p, s: self._play(p, s, key)[1], params, play)
        memory = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        order = jnp.arange(c.envs * c.length, dtype=jnp.int32)
        return params, PPOState(play, memory, order, jnp.zeros((), jnp.int32))

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, PPOState]:
        del batch
        c, s = self.config, task_state
        play_key, order_key = jax.random.split(key)
        index = s.count % c.minibatches
        frozen = jax.lax.stop_gradient(params)
        # Loops of no round or one: under vmap, a `cond` would do the work in every step
        # of every agent, a loop only when some agent is due.
        play, memory = jax.lax.fori_loop(
            0,
            (s.count % (c.epochs * c.minibatches) == 0).astype(jnp.int32),
            lambda _, old: self._play(frozen, old[0], play_key),
            (s.play, s.memory),
        )
        order = jax.lax.fori_loop(
            0,
            (index == 0).astype(jnp.int32),
            lambda _, old: jax.random.permutation(order_key, old),
            s.order,
        )
        size = order.shape[0] // c.minibatches
        rows = jax.lax.dynamic_slice_in_dim(order, index * size, size)
        part = jax.tree.map(lambda x: x[rows], memory)
        loss = self._clipped_objective(params, part)
        return loss, PPOState(play, memory, order, s.count + 1)

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        del split
        frozen = jax.lax.stop_gradient(params)
        return self._clipped_objective(
            params, self._play(frozen, task_state.play, key)[1]
        )

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        del params, key, split
        return {"return": rollout.mean_return(task_state.play)}

    def _play(self, params: Params, play: Play, key: Key) -> tuple[Play, Memory]:
        play, trajectory = self._collect(params, play, key)
        logits, values = apply_over_time(self.network, params, trajectory)
        errors = self._errors(trajectory, values)
        steps = Memory(
            observations=trajectory.observations,
            actions=trajectory.actions,
            logs=log_probability(logits[:-1], trajectory.actions),
            advantages=errors,
            targets=errors + values[:-1],
        )
        return play, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)

    def _clipped_objective(self, params: Params, part: Memory) -> Scalar:
        c = self.config
        logits, values = self.network.apply(params, part.observations)
        ratio = jnp.exp(log_probability(logits, part.actions) - part.logs)
        mean, deviation = jnp.mean(part.advantages), jnp.std(part.advantages)
        advantages = (part.advantages - mean) / (deviation + 1e-8)
        clipped = jnp.clip(ratio, 1.0 - c.clip, 1.0 + c.clip)
        actor = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))
        critic = jnp.mean(jnp.square(part.targets - values))
        spread = jnp.mean(entropy(logits))
        return actor + c.critic_weight * critic - c.entropy_weight * spread
