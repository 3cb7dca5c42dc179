"""A family of tasks as one task: every training run draws its own.

With it, whatever trains one task over many seeds (`lopax.evaluate.runs.run`, `compare`)
trains a sample of a family, and two optimizers given the same seeds meet the same
tasks.
"""

from __future__ import annotations

import dataclasses

import jax

from lopax._core.task import Task, TaskFamily
from lopax._core.types import Batch, Key, Params, Scalar, TaskState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SampledTask(Task):
    """A task of `family`, drawn by the key of `init`. A pytree if the family is one.

    The task state is {"config": the drawn configuration, "base": the task's own}.
    """

    family: TaskFamily

    def init(self, key: Key) -> tuple[Params, TaskState]:
        config_key, init_key = jax.random.split(key)
        config = self.family.sample(config_key)
        params, state = self.family.task(config).init(init_key)
        return params, {"config": config, "base": state}

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        loss, base = self._task(task_state).loss(params, task_state["base"], key, batch)
        return loss, {**task_state, "base": base}

    def value_and_grad(
        self, params: Params, task_state: TaskState, key: Key, split: str = "train"
    ) -> tuple[Scalar, Params, TaskState]:
        loss, grads, base = self._task(task_state).value_and_grad(
            params, task_state["base"], key, split
        )
        return loss, grads, {**task_state, "base": base}

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        task = self._task(task_state)
        return task.evaluate(params, task_state["base"], key, split)

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        return self._task(task_state).metrics(params, task_state["base"], key, split)

    def normalize(self, loss: Scalar) -> Scalar:
        """As the family's tasks do, which agree in it."""
        return self._some_task.normalize(loss)

    @property
    def loss_bound(self) -> float:
        return self._some_task.loss_bound

    @property
    def _some_task(self) -> Task:
        return self.family.task(self.family.sample(jax.random.key(0)))

    def _task(self, task_state: TaskState) -> Task:
        return self.family.task(task_state["config"])
