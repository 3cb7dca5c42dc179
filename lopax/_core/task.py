"""What is being optimised: a task, and a family of tasks with array-valued settings.

`Task.value_and_grad` is the one primitive that training, meta-training and evaluation
call. It carries `task_state`, so batch-norm statistics or RL environments fit without
special cases. Most tasks only define `init`, `loss` and `batch`.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lopax._core.errors import TaskError
from lopax._core.types import Batch, Key, Params, Scalar, TaskState


class Task(abc.ABC):
    """A loss to be minimised, with its data and its starting point.

    Tasks are pure: randomness comes from keys, data from device-resident arrays.
    Tasks made by a `TaskFamily` may hold traced values.
    """

    @abc.abstractmethod
    def init(self, key: Key) -> tuple[Params, TaskState]:
        """Initial parameters, and whatever the task carries beside them (or None)."""

    @abc.abstractmethod
    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        """The loss [] of one batch and the next task state."""

    def batch(self, key: Key, split: str = "train") -> Batch:
        """A random batch of `split` ("train", "valid" or "test"), inside jit."""
        del key, split
        return None

    def value_and_grad(
        self, params: Params, task_state: TaskState, key: Key, split: str = "train"
    ) -> tuple[Scalar, Params, TaskState]:
        """Loss [], gradient and next task state on a fresh batch."""
        batch_key, loss_key = jax.random.split(key)
        batch = self.batch(batch_key, split)
        (loss, task_state), grads = jax.value_and_grad(self.loss, has_aux=True)(
            params, task_state, loss_key, batch
        )
        return loss, grads, task_state

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        """Loss [] on a fresh batch of `split`, without a gradient."""
        batch_key, loss_key = jax.random.split(key)
        return self.loss(params, task_state, loss_key, self.batch(batch_key, split))[0]

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        """Named extra measures (accuracy); none by default."""
        del params, task_state, key, split
        return {}

    def normalize(self, loss: Scalar) -> Scalar:
        """The loss as the meta-loss sees it: bounded and never NaN."""
        bound = self.loss_bound
        loss = jnp.where(jnp.isfinite(loss), loss, bound)
        return jnp.clip(loss, -bound, bound)

    @property
    def loss_bound(self) -> float:
        """Where `normalize` clips; non-finite losses count as this much."""
        return 1e3


class WrappedTask(Task):
    """A task that is `base` but for what a subclass overrides.

    Gradients are the base's own (they may not come from autodiff), so a subclass that
    changes what is trained overrides `value_and_grad`, not only `loss`.
    """

    base: Task

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return self.base.init(key)

    def batch(self, key: Key, split: str = "train") -> Batch:
        return self.base.batch(key, split)

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        return self.base.loss(params, task_state, key, batch)

    def value_and_grad(
        self, params: Params, task_state: TaskState, key: Key, split: str = "train"
    ) -> tuple[Scalar, Params, TaskState]:
        return self.base.value_and_grad(params, task_state, key, split)

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        return self.base.evaluate(params, task_state, key, split)

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        return self.base.metrics(params, task_state, key, split)

    def normalize(self, loss: Scalar) -> Scalar:
        return self.base.normalize(loss)

    @property
    def loss_bound(self) -> float:
        return self.base.loss_bound


class TaskFamily(abc.ABC):
    """A distribution over tasks of one shape.

    A sampled configuration is a pytree of arrays, so that many different tasks run in
    one vmapped program. `num_strata` > 1 lets an estimator give each particle its own
    stratum (say, one data set each) instead of sampling it.
    """

    num_strata: int = 1

    @abc.abstractmethod
    def sample(self, key: Key, stratum: Any = None) -> Any:
        """A configuration; `stratum` [] int32 fixes the stratum, None draws it."""

    @abc.abstractmethod
    def task(self, config: Any) -> Task:
        """The task of a configuration (which may be traced)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SingleTask(TaskFamily):
    """One fixed task as a family; a pytree if the task is one."""

    single: Task

    def sample(self, key: Key, stratum: Any = None) -> Any:
        del key, stratum
        return ()

    def task(self, config: Any) -> Task:
        del config
        return self.single


def check_task(task: Task, name: str, key: Key | None = None) -> None:
    """Runs a task once and raises `TaskError` if it breaks its contract.

    Checked: batches follow from their key alone, the loss is a finite scalar at the
    initial parameters, gradients have the parameters' structure and are finite, the
    task state keeps its structure.
    """
    key = jax.random.key(0) if key is None else key
    check_batches(task, name, key)
    params, task_state = task.init(key)
    try:
        loss, grads, after = jax.jit(task.value_and_grad)(params, task_state, key)
    except TypeError as error:
        raise TaskError(
            f"task {name!r}: its loss could not be differentiated ({error}). "
            "loss() must return a pair: a scalar and the task state."
        ) from None
    if jnp.shape(loss) != ():
        raise TaskError(
            f"task {name!r}: loss has shape {jnp.shape(loss)}, must be a scalar; "
            "take the mean over the batch"
        )
    if not bool(jnp.isfinite(loss)):
        raise TaskError(
            f"task {name!r}: loss is {float(loss)} at the initial parameters; "
            "check the data and the initialisation"
        )
    if jax.tree.structure(grads) != jax.tree.structure(params):
        raise TaskError(
            f"task {name!r}: gradients have structure {jax.tree.structure(grads)}, "
            f"parameters {jax.tree.structure(params)}"
        )
    bad = [bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads)]
    if not all(bad):
        raise TaskError(f"task {name!r}: gradients at the start are not finite")
    if jax.tree.structure(after) != jax.tree.structure(task_state):
        raise TaskError(
            f"task {name!r}: task state changed its structure from "
            f"{jax.tree.structure(task_state)} to {jax.tree.structure(after)}"
        )


def check_batches(task: Task, name: str, key: Key) -> None:
    """Raises `TaskError` if one key gives two batches: they come from an iterator or
    another random generator, and a compiled program would keep the first for ever."""
    first, second = (jax.tree.leaves(task.batch(key)) for _ in range(2))
    if any(isinstance(x, Tracer) for x in (*first, *second)):
        return
    if len(first) != len(second) or not all(map(_same, first, second)):
        raise TaskError(
            f"task {name!r}: batch(key) gave two batches for one key, so it does not "
            "follow from the key alone. It is compiled: what it takes from an iterator "
            "or a host's random generator would stay the same batch for the whole run. "
            "Give the arrays as data=, or draw with the key: "
            "i = jax.random.randint(key, (64,), 0, len(x)); return x[i], y[i]"
        )


def _same(a: Any, b: Any) -> bool:
    if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
