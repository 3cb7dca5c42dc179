"""Fine-tuning a pretrained network on a few images of other classes: a task family.

The head of a pretrained network (`lopax.tasks.pretraining`) is cut off. Each task gives
it a new one for a few classes drawn at random, and a few images of each. Images the
network was pretrained on belong to no task, and the tasks for meta-training and those
held out share no image.

The small-scale counterpart of the tasks of L3RS (Kristiansen et al., 2024, arXiv
2408.09310), which are classes of ImageNet and a residual network.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.task import Task, TaskFamily
from lopax._core.tree import named_leaves
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.tasks.heads import Classification, Head
from lopax.tasks.networks import Network
from lopax.tasks.pretraining import PretrainingSettings, head_names, pretrained
from lopax.tasks.sources import decode, pick_split, random_below, take


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuningSettings:
    """What is fine-tuned, and on how much."""

    pretraining: PretrainingSettings = dataclasses.field(
        default_factory=PretrainingSettings
    )
    classes: int = 4
    """Of a task, drawn from all classes of the data set."""
    images: int = 20
    """To train on, of each class of a task."""
    valid_images: int = 5
    """Of each class, for the "valid" split; all that are left are the "test" split."""
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_range(self, "classes", low=2)
        for name in ("images", "valid_images", "batch_size"):
            check_range(self, name, low=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FineTuningTask(Task):
    """Training `network` on the images that `rows` says, from pretrained tensors.

    Batches of "valid" and "test" are all images of their split, so that their losses
    are exact.
    """

    images: Array
    rows: dict[str, Int[Array, "classes images"]]
    """Split -> which images, a row for each class of the task."""
    trunk: dict[str, Array]
    """The pretrained tensors by name; those that are not there start afresh."""
    trunk_state: Any
    network: Network = dataclasses.field(metadata={"static": True})
    head: Head = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})

    def init(self, key: Key) -> tuple[Params, TaskState]:
        fresh, _ = self.network.init(key, self.images.shape[1:])
        # Written into the fresh tensors: the trunk is the task's own data, placed on
        # devices in another way than what is made inside of a sharded program.
        leaves = [
            leaf.at[...].set(self.trunk[name]) if name in self.trunk else leaf
            for name, leaf in named_leaves(fresh).items()
        ]
        return jax.tree.structure(fresh).unflatten(leaves), self.trunk_state

    def batch(self, key: Key, split: str = "train") -> Batch:
        rows = pick_split(self.rows, split)
        count = rows.shape[1]
        if split == "train":
            place = random_below(key, self.batch_size, rows.size)
        else:
            place = jnp.arange(rows.size)
        inputs = take(self.images, take(rows.reshape(-1), place))
        return decode(inputs), place // count

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        del key
        inputs, labels = batch
        outputs, task_state = self.network.apply(params, task_state, inputs)
        return self.head.loss(outputs, inputs, labels), task_state

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        """Loss [] with the network in evaluation mode."""
        outputs, inputs, labels = self._predict(params, task_state, key, split)
        return self.head.loss(outputs, inputs, labels)

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        outputs, _, labels = self._predict(params, task_state, key, split)
        return self.head.metrics(outputs, labels)

    def _predict(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> tuple[Array, Array, Array]:
        inputs, labels = self.batch(key, split)
        outputs, _ = self.network.apply(params, task_state, inputs, training=False)
        return outputs, inputs, labels

    @property
    def loss_bound(self) -> float:
        return self.head.bound


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FineTuningFamily(TaskFamily):
    """Tasks on one pool of images. A pytree; build it with `fine_tuning`.

    A configuration is {"classes": [c] int32, "rows": [c, m] int32}: which classes, and
    each one's images in random order.
    """

    base: FineTuningTask
    table: Int[Array, "classes m"]
    """The pool's images by class."""
    sizes: tuple[int, int] = dataclasses.field(metadata={"static": True})
    """Training and validation images of each class of a task."""
    num_classes: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key, stratum: Any = None) -> dict[str, Any]:
        del stratum
        class_key, image_key = jax.random.split(key)
        shuffled = jax.random.permutation(class_key, self.table.shape[0])
        classes = shuffled[: self.num_classes].astype(jnp.int32)
        rows = take(self.table, classes)
        rows = jax.random.permutation(image_key, rows, axis=1, independent=True)
        return {"classes": classes, "rows": rows}

    def task(self, config: dict[str, Any]) -> FineTuningTask:
        train, valid = self.sizes
        rows = config["rows"]
        splits = {
            "train": rows[:, :train],
            "valid": rows[:, train : train + valid],
            "test": rows[:, train + valid :],
        }
        return dataclasses.replace(self.base, rows=splits)


class FineTuning(NamedTuple):
    """What `fine_tuning` makes."""

    meta_training: FineTuningFamily
    held_out: FineTuningFamily
    head_names: tuple[str, ...]  # the tensors that each task starts afresh


def fine_tuning(settings: FineTuningSettings | None = None) -> FineTuning:
    """The families of tasks that fine-tune one network, which is pretrained here.

    Raises `ConfigError` if the data set has too few classes or images for the tasks,
    and what `pretrained` raises.
    """
    s = settings or FineTuningSettings()
    base = pretrained(s.pretraining)
    heads = head_names(s.pretraining, s.classes)
    trunk = {k: v for k, v in named_leaves(base.params).items() if k not in heads}
    task = FineTuningTask(
        images=base.images,
        rows={},
        trunk=trunk,
        trunk_state=base.state,
        network=s.pretraining.network_for(s.classes),
        head=Classification(num_classes=s.classes),
        batch_size=s.batch_size,
    )

    def family(pool: str) -> FineTuningFamily:
        table = base.by_class(pool)
        least = s.images + s.valid_images + 1
        if table.shape[0] < s.classes or table.shape[1] < least:
            raise ConfigError(
                f"{s.pretraining.dataset!r}: its pool {pool!r} has {table.shape[0]} "
                f"classes of {table.shape[1]} images; the tasks need {s.classes} of "
                f"{least}"
            )
        return FineTuningFamily(
            base=task,
            table=jnp.asarray(table, jnp.int32),
            sizes=(s.images, s.valid_images),
            num_classes=s.classes,
        )

    return FineTuning(family("meta_training"), family("held_out"), heads)
