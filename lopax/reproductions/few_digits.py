"""A classifier with far too few training images: where test loss and training loss
part ways. Shared by the reproductions about generalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from lopax import evaluate, meta
from lopax._core.task import SingleTask
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.estimators.flatness import largest_eigenvalue
from lopax.reproductions.cases import Case, Measured
from lopax.tasks import ExampleBank, SupervisedTask, task
from lopax.tasks.sources import SplitArrays
from lopax.theta import load_theta

ITERATIONS = 10
"""Of the power iteration that measures curvature."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FewDigits(SupervisedTask):
    """Images of which the first few are trained on; "extra_valid" is what else
    there is beside "valid" and "test". Measured on the whole test set."""

    smoothing: float = dataclasses.field(default=0.0, metadata={"static": True})
    """Share of each label that is spread over all classes, in training losses only."""

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        if not self.smoothing:
            return super().loss(params, task_state, key, batch)
        inputs, labels = batch
        outputs, task_state = self.network.apply(params, task_state, inputs)
        uniform = -jnp.mean(jax.nn.log_softmax(outputs))
        plain = self.head.loss(outputs, inputs, labels)
        return (1.0 - self.smoothing) * plain + self.smoothing * uniform, task_state

    def _predict(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> tuple[Array, Array, Array]:
        if split != "test":
            return super()._predict(params, task_state, key, split)
        assert isinstance(self.source, ExampleBank)
        arrays = self.source.splits["test"]
        inputs = arrays.inputs.astype(jnp.float32) / 65535.0
        outputs, _ = self.network.apply(params, task_state, inputs, training=False)
        return outputs, inputs, arrays.labels

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        found = super().metrics(params, task_state, key, split)
        return {
            **found,
            "weight_norm": optax.global_norm(params),
            "curvature": self._curvature(params, task_state, key),
        }

    def _curvature(self, params: Params, task_state: TaskState, key: Key) -> Scalar:
        """The largest eigenvalue of the Hessian of the loss on all training images,
        without smoothing."""
        assert isinstance(self.source, ExampleBank)
        arrays = self.source.splits["train"]
        inputs = arrays.inputs.astype(jnp.float32) / 65535.0
        flat, unravel = ravel_pytree(params)

        def loss(x: Array) -> Scalar:
            outputs, _ = self.network.apply(unravel(x), task_state, inputs)
            return self.head.loss(outputs, inputs, arrays.labels)

        return largest_eigenvalue(loss, flat, key, ITERATIONS)


def few_digits(
    images: int,
    smoothing: float = 0.0,
    registered: str = "digits_mlp_32",
    **settings: Any,
) -> FewDigits:
    """The task.

    **Arguments:**

    - `images`: how many are trained on, at most those of the "train" split.
    - `smoothing`: of labels, in training losses.
    - `registered`: the task whose images and network they are.
    - `settings`: of that (hidden, activation, batch_size ...).
    """
    whole = task(registered, **settings)
    assert isinstance(whole, SupervisedTask)
    assert isinstance(whole.source, ExampleBank)
    splits = whole.source.splits
    train, extra = splits["train"], splits["extra_valid"]
    rest = [
        np.concatenate([np.asarray(a)[images:], np.asarray(b)])
        for a, b in ((train.inputs, extra.inputs), (train.labels, extra.labels))
    ]
    bank = ExampleBank(
        {
            **splits,
            "train": _split(train.inputs[:images], train.labels[:images]),
            "extra_valid": _split(*rest),
        }
    )
    return FewDigits(
        source=bank,
        network=whole.network,
        head=whole.head,
        batch_size=whole.batch_size,
        smoothing=smoothing,
    )


def family(settings: Mapping[str, Any]) -> SingleTask:
    """The task of a study's settings as a family."""
    return SingleTask(few_digits(settings["images"], **settings["task"]))


def meta_train(run: meta.RunConfig, case: Case) -> Measured:
    """Meta-trains on the case's task (or continues, or reads the weights) and measures
    the rule at its training horizon and at three times that."""
    s = case.settings
    folder = case.folder / "run"
    if not (folder / "weights.safetensors").exists():
        resume = (folder / "config.json").exists()
        meta.train(run, (family(s),), folder, resume=resume)
    theta = load_theta(folder / "weights.safetensors", run.architecture)
    return measure(evaluate.learned(run.architecture, theta, **run.settings), s)


def adam(learning_rate: float, case: Case) -> Measured:
    """Adam beside it; nothing is meta-trained."""
    return measure(evaluate.default_rate("adam", learning_rate), case.settings)


def measure(spec: evaluate.OptimizerSpec, settings: Mapping[str, Any]) -> Measured:
    """Test loss, accuracy and weight norm at settings["steps"] and three times that,
    and curves; means over settings["seeds"] runs, each of which starts and draws alike
    for every optimizer."""
    steps, every = settings["steps"], settings["test_every"]
    config = evaluate.RunConfig(
        num_steps=3 * steps, eval_every=every, eval_batches=1, final_batches=1
    )
    images = few_digits(settings["images"], **settings["task"])
    found = evaluate.run(spec, images, config, seeds=list(range(settings["seeds"])))
    curves = {
        "test loss": found.test,
        "test accuracy": found.metrics["test/accuracy"],
        "weight norm": found.metrics["test/weight_norm"],
        "curvature": found.metrics["test/curvature"],
    }
    means = {k: v[:, 0].astype(np.float64).mean(axis=0) for k, v in curves.items()}
    values = {
        f"{name} at {t}": float(mean[config.eval_steps.index(t)])
        for name, mean in means.items()
        for t in (steps, 3 * steps)
    }
    return Measured(values, {k: mean.tolist() for k, mean in means.items()})


def _split(inputs: Any, labels: Any) -> SplitArrays:
    return SplitArrays(
        inputs=jnp.asarray(inputs),
        labels=jnp.asarray(labels),
        starts=jnp.zeros((1,), jnp.int32),
        sizes=jnp.asarray([len(labels)], jnp.uint32),
    )
