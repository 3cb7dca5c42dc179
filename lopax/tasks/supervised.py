"""A network, a source of examples and a loss: most tasks are these three."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array

from lopax._core.task import Task
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.tasks.heads import Head
from lopax.tasks.networks import Network
from lopax.tasks.sources import Source


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedTask(Task):
    """Training `network` on batches of `source` with the loss of `head`.

    A pytree: the source's arrays and `dataset` are leaves, the rest is static.
    """

    source: Source
    network: Network = dataclasses.field(metadata={"static": True})
    head: Head = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    dataset: Any = 0
    """[] int32, which data set of the source; may be traced."""

    def on(self, dataset: Any) -> SupervisedTask:
        """The task on another data set of its source; [] int32, may be traced."""
        return dataclasses.replace(self, dataset=dataset)

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return self.network.init(key, self.source.input_shape)

    def batch(self, key: Key, split: str = "train") -> Batch:
        return self.source.draw(key, split, self.batch_size, self.dataset)

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        del key
        inputs, targets = batch
        outputs, task_state = self.network.apply(params, task_state, inputs)
        return self.head.loss(outputs, inputs, targets), task_state

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        """Loss [] on a fresh batch, with the network in evaluation mode."""
        outputs, inputs, targets = self._predict(params, task_state, key, split)
        return self.head.loss(outputs, inputs, targets)

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        """The head's metrics on the batch that `evaluate` draws with this key."""
        outputs, _, targets = self._predict(params, task_state, key, split)
        return self.head.metrics(outputs, targets)

    def _predict(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> tuple[Array, Array, Array]:
        batch_key, _ = jax.random.split(key)
        inputs, targets = self.batch(batch_key, split)
        outputs, _ = self.network.apply(params, task_state, inputs, training=False)
        return outputs, inputs, targets

    @property
    def loss_bound(self) -> float:
        return self.head.bound
