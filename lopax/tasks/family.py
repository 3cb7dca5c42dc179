"""Task families for meta-training: one network, several data sets.

All tasks of a family have one shape, so the data set is a number in the sampled
configuration and all of them run in one vmapped program. Celo's four tasks (Moudgil et
al., 2025, arXiv 2501.12670) are MNIST, Fashion-MNIST, CIFAR-10 and SVHN at 8x8 grey, an
MLP 64-32-10 with ReLU, batches of 64: `supervised_family("mlp", FOUR_DATASETS)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.config import from_dict
from lopax._core.errors import ConfigError, UnknownName
from lopax._core.task import Task, TaskFamily
from lopax._core.types import Key
from lopax.data import ImageDataset
from lopax.tasks.rare_settings import (
    UnrolledSettings,
    VAESettings,
    VariedMLPSettings,
    ViTSettings,
)
from lopax.tasks.settings import (
    AutoencoderSettings,
    ConvSettings,
    ImageMLPSettings,
    RecurrentSettings,
    Settings,
    TransformerSettings,
    VectorMLPSettings,
)
from lopax.tasks.supervised import SupervisedTask
from lopax.tasks.unrolled import UnrolledTask

FOUR_DATASETS = ("mnist", "fashion_mnist", "cifar10", "svhn")
"""Those of the published meta-training."""


NETWORKS: dict[str, type[Settings]] = {
    "mlp": ImageMLPSettings,
    "conv": ConvSettings,
    "autoencoder": AutoencoderSettings,
    "vector_mlp": VectorMLPSettings,
    "recurrent": RecurrentSettings,
    "transformer": TransformerSettings,
    "varied_mlp": VariedMLPSettings,
    "vae": VAESettings,
    "vision_transformer": ViTSettings,
    "learned_optimizer": UnrolledSettings,
}
"""What a family's network can be, and the settings that describe it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedFamily(TaskFamily):
    """One network, D data sets; a configuration is {"dataset": [] int32}.

    A pytree: pass it to jit as an argument, so that the data are no constants of the
    compiled program. Strata are the data sets. Build it with `supervised_family`.
    """

    base: SupervisedTask | UnrolledTask
    datasets: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    num_strata: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key, stratum: Any = None) -> dict[str, Any]:
        if stratum is None:
            stratum = jax.random.randint(key, (), 0, self.num_strata)
        return {"dataset": jnp.asarray(stratum, jnp.int32)}

    def task(self, config: dict[str, Any]) -> Task:
        return self.base.on(config["dataset"])


def supervised_family(
    network: str = "mlp",
    datasets: Sequence[str | ImageDataset] = FOUR_DATASETS,
    **settings: Any,
) -> SupervisedFamily:
    """The family of one network on `datasets`.

    **Arguments:**

    - `network`: a key of `NETWORKS`.
    - `datasets`: names, or loaded image data sets; for images any number with the
        same number of classes (all are resized alike), otherwise one.
    - `settings`: of that network's settings class (`hidden`, `batch_size`, `size`...).

    Raises `UnknownName` for a network or setting that does not exist, `ConfigError`
    for values out of range or data sets that do not fit together, and what
    `lopax.data.load` raises.
    """
    if network not in NETWORKS:
        raise UnknownName("network", network, NETWORKS)
    if not datasets:
        raise ConfigError("datasets = (): name at least one data set")
    names = tuple(d if isinstance(d, str) else d.name for d in datasets)
    values = {**settings, "dataset": names[0]}
    described = from_dict(NETWORKS[network], values, where=f"network {network!r}")
    base = described.build_over(datasets)
    return SupervisedFamily(base=base, datasets=names, num_strata=len(names))
