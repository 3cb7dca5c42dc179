"""The meta-training tasks: one small MLP on several image data sets.

Celo's four tasks (Moudgil et al., 2025, arXiv 2501.12670) are MNIST, Fashion-MNIST,
CIFAR-10 and SVHN at 8x8 grey, an MLP 64-32-10 with ReLU, batches of 64. All have one
shape, so the data set is a number in the sampled configuration and all four run in
one vmapped program.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.errors import ConfigError
from lopax._core.task import TaskFamily
from lopax._core.types import Key
from lopax.data import ImageDataset, prepare
from lopax.tasks.heads import Classification
from lopax.tasks.networks import MLP
from lopax.tasks.sources import ExampleBank, bank_of
from lopax.tasks.supervised import SupervisedTask

FOUR_DATASETS = ("mnist", "fashion_mnist", "cifar10", "svhn")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageMLPFamily(TaskFamily):
    """One MLP, D data sets; a configuration is {"dataset": [] int32}.

    A pytree: pass it to jit as an argument, so that the images are no constants of
    the compiled program. Strata are the data sets. Build it with `image_mlp_family`.
    """

    bank: ExampleBank
    network: MLP = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    datasets: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    num_strata: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key, stratum: Any = None) -> dict[str, Any]:
        if stratum is None:
            stratum = jax.random.randint(key, (), 0, self.num_strata)
        return {"dataset": jnp.asarray(stratum, jnp.int32)}

    def task(self, config: dict[str, Any]) -> SupervisedTask:
        return SupervisedTask(
            source=self.bank,
            network=self.network,
            head=Classification(num_classes=self.network.outputs),
            batch_size=self.batch_size,
            dataset=config["dataset"],
        )


def image_mlp_family(
    datasets: Sequence[str | ImageDataset] = FOUR_DATASETS,
    *,
    size: int = 8,
    grey: bool = True,
    hidden: tuple[int, ...] = (32,),
    batch_size: int = 64,
    activation: str = "relu",
    published_one_percent: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
) -> ImageMLPFamily:
    """The family of MLPs on `datasets`, all resized alike.

    **Arguments:**

    - `datasets`: names (or loaded data sets), all with the same number of classes.
    - `size`, `grey`, `published_one_percent`, `data_dir`: see `lopax.data.prepare`.

    Raises `ConfigError` if the numbers of classes differ or a setting is out of range,
    and what `lopax.data.load` raises.
    """
    if not datasets:
        raise ConfigError("datasets = (): name at least one data set")
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size!r}: must be at least 1")
    prepared = [
        prepare(
            d,
            size,
            grey,
            published_one_percent=published_one_percent,
            data_dir=data_dir,
        )
        for d in datasets
    ]
    classes = [(p.name, p.num_classes) for p in prepared]
    if len({count for _, count in classes}) != 1:
        raise ConfigError(f"data sets of one family must agree in classes: {classes}")
    network = MLP(
        hidden=tuple(hidden), outputs=prepared[0].num_classes, activation=activation
    )
    return ImageMLPFamily(
        bank=bank_of(prepared, flatten=True, fixed_point=True),
        network=network,
        batch_size=batch_size,
        datasets=tuple(p.name for p in prepared),
        num_strata=len(prepared),
    )
