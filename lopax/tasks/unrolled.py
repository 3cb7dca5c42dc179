"""Training a learned optimizer, as a task for other optimizers.

The parameters are a learned optimizer's meta-parameters; the loss is the mean
normalised loss of a short training run with it, differentiated through the whole run
(Metz et al., 2022, arXiv 2211.09760). A poor way to meta-train, and a hard problem to
optimise, which is what it is here for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task
from lopax._core.types import Batch, Key, Params, Scalar, TaskState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnrolledTask(Task):
    """Meta-training `rule` on `inner` by back-propagation through `num_steps` updates.

    A batch is one batch of the inner task for each of its steps. Each loss starts the
    inner run from fresh parameters. Steps are recomputed in the backward pass, so
    memory grows with the inner parameters, not with the activations.
    """

    inner: Task
    rule: LearnedOptimizer = dataclasses.field(metadata={"static": True})
    num_steps: int = dataclasses.field(metadata={"static": True})

    def on(self, dataset: Any) -> UnrolledTask:
        """With the inner task on another data set; needs one that has several."""
        return dataclasses.replace(self, inner=self.inner.on(dataset))  # type: ignore[attr-defined]

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return self.rule.init_theta(key), None

    def batch(self, key: Key, split: str = "train") -> Batch:
        keys = jax.random.split(key, self.num_steps)
        return jax.vmap(lambda k: self.inner.batch(k, split))(keys)

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        init_key, run_key = jax.random.split(key)
        theta, rule = params, self.rule
        weights, inner_state = self.inner.init(init_key)
        horizon = self.num_steps if rule.needs_horizon else None
        state = rule.init(theta, weights, horizon)

        @jax.checkpoint
        def step(carry: Any, seen: Any) -> tuple[Any, Scalar]:
            weights, inner_state, state = carry
            step_key, data = seen
            (loss, inner_state), grads = jax.value_and_grad(
                self.inner.loss, has_aux=True
            )(weights, inner_state, step_key, data)
            updates, state, _ = rule.update(theta, grads, state, weights, value=loss)
            return (optax.apply_updates(weights, updates), inner_state, state), loss

        keys = jax.random.split(run_key, self.num_steps)
        carry = (weights, inner_state, state)
        _, losses = jax.lax.scan(step, carry, (keys, batch))
        return jnp.mean(jax.vmap(self.inner.normalize)(losses)), task_state

    @property
    def loss_bound(self) -> float:
        return self.inner.loss_bound
