"""The registered tasks: a table of names, settings and data sets.

A name is DATASET_VARIANT (`digits_conv`, `tinyshakespeare_gru_lm`). Every variant
exists on embedded data sets, which are always there, and on the larger ones. The
published evaluation tasks keep their published names (`lopax.tasks.velodrome`).
Variants marked as held out are never used in meta-training, whose tasks (`recipes/`)
are `mlp_32` and smaller relatives of the others that have no name here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lopax._core.config import from_dict, merge, to_dict
from lopax._core.registry import Registry
from lopax._core.task import Task
from lopax.data import available
from lopax.tasks.medium import MEDIUM
from lopax.tasks.quadratic import Quadratic
from lopax.tasks.rl import A2CSettings, PPOSettings
from lopax.tasks.settings import (
    AutoencoderSettings,
    ConvSettings,
    ImageMLPSettings,
    RecurrentSettings,
    TransformerSettings,
    VectorMLPSettings,
)
from lopax.tasks.velodrome import VELODROME


class TaskEntry(NamedTuple):
    """A registered task."""

    settings: Any
    """Frozen dataclass with the defaults; `build()` makes the task."""
    about: str
    held_out: bool

    @property
    def dataset(self) -> str | None:
        return getattr(self.settings, "dataset", None)


class _Variant(NamedTuple):
    name: str
    settings: type
    about: str
    values: dict[str, Any]
    held_out: bool = True


_IMAGES: dict[str, dict[str, Any]] = {
    "digits": {"size": 8, "grey": True},
    "mnist": {"size": 14, "grey": True},
    "fashion_mnist": {"size": 14, "grey": True},
    "svhn": {"size": 16, "grey": False},
    "cifar10": {"size": 16, "grey": False},
    "cifar100": {"size": 16, "grey": False},
    "cifar100_coarse10": {"size": 16, "grey": False},
}
_VECTORS = ("breast_cancer", "wine")
_TEXTS = (
    "sklearn_descr",
    "tinyshakespeare",
    "war_and_peace",
    "wikitext2",
    "wikitext2_valid",
)

_IMAGE_VARIANTS = (
    _Variant(
        "mlp_32",
        ImageMLPSettings,
        "MLP of 32 ReLU units, 8x8 grey: the meta-training task",
        {"hidden": (32,), "batch_size": 64, "size": 8, "grey": True},
        held_out=False,
    ),
    _Variant(
        "mlp_128x128",
        ImageMLPSettings,
        "MLP 128-128, ReLU",
        {"hidden": (128, 128), "batch_size": 128},
    ),
    _Variant("mlp_wide", ImageMLPSettings, "MLP of 512 ReLU units", {"hidden": (512,)}),
    _Variant(
        "mlp_deep",
        ImageMLPSettings,
        "MLP of six layers of 64 ReLU units",
        {"hidden": (64,) * 6},
    ),
    _Variant(
        "mlp_tanh",
        ImageMLPSettings,
        "MLP 128-128-128, tanh",
        {"hidden": (128,) * 3, "activation": "tanh", "batch_size": 128},
    ),
    _Variant(
        "mlp_layernorm",
        ImageMLPSettings,
        "MLP 128-128-128, layer norm, ReLU",
        {"hidden": (128,) * 3, "layer_norm": True, "batch_size": 128},
    ),
    _Variant("conv", ConvSettings, "three convolutions, 16-32-32", {}),
    _Variant(
        "conv_batchnorm",
        ConvSettings,
        "three convolutions, batch norm",
        {"norm": "batch"},
    ),
    _Variant(
        "conv_layernorm",
        ConvSettings,
        "three convolutions, layer norm",
        {"norm": "layer"},
    ),
    _Variant("autoencoder", AutoencoderSettings, "MLP autoencoder 128-32-128", {}),
)
_VECTOR_VARIANTS = (
    _Variant("mlp", VectorMLPSettings, "MLP of 32 ReLU units", {"hidden": (32,)}),
    _Variant(
        "mlp_deep", VectorMLPSettings, "MLP of four layers", {"hidden": (32,) * 4}
    ),
)
_TEXT_VARIANTS = (
    _Variant("gru_lm", RecurrentSettings, "characters, GRU of 64 units", {}),
    _Variant(
        "lstm_lm",
        RecurrentSettings,
        "characters, LSTM of 64 units",
        {"cell": "lstm"},
    ),
    _Variant(
        "transformer_lm", TransformerSettings, "characters, two-layer transformer", {}
    ),
)

TASKS: Registry[TaskEntry] = Registry("task")
"""Every registered task by name: how it is made, what it needs."""


def _register(dataset: str, common: dict[str, Any], variants: Any) -> None:
    for v in variants:
        values = {"dataset": dataset, **common, **v.values}
        entry = TaskEntry(v.settings(**values), f"{dataset}: {v.about}", v.held_out)
        TASKS.add(f"{dataset}_{v.name}", entry)


for _dataset, _common in _IMAGES.items():
    _register(_dataset, _common, _IMAGE_VARIANTS)
for _dataset in _VECTORS:
    _register(_dataset, {}, _VECTOR_VARIANTS)
for _dataset in _TEXTS:
    _register(_dataset, {}, _TEXT_VARIANTS)
for _name, _quadratic in (
    ("quadratic", Quadratic(dimension=10, condition=1.0)),
    ("quadratic_condition_100", Quadratic(dimension=20, condition=100.0)),
    ("quadratic_condition_10000", Quadratic(dimension=20, condition=1e4)),
    ("quadratic_noisy", Quadratic(dimension=20, condition=100.0, noise=0.1)),
):
    TASKS.add(_name, TaskEntry(_quadratic, "quadratic bowl, known answer", True))
for _name, _agent, _about, _held_out in (
    (
        "catch_a2c",
        A2CSettings(environment="catch"),
        "Catch, actor-critic: Optim4RL's meta-training environment",
        False,
    ),
    (
        "cartpole_a2c",
        A2CSettings(environment="cartpole"),
        "CartPole, actor-critic",
        True,
    ),
    (
        "cartpole_ppo",
        PPOSettings(environment="cartpole", length=32),
        "CartPole, PPO",
        True,
    ),
    (
        "small_dense_long_a2c",
        A2CSettings(environment="grid_small_dense_long", hidden=(32,)),
        "gridworld 6x4, actor-critic",
        True,
    ),
    (
        "big_sparse_short_a2c",
        A2CSettings(environment="grid_big_sparse_short", channels=(16,), hidden=(32,)),
        "gridworld 10x12, convolutional actor-critic",
        True,
    ),
):
    TASKS.add(_name, TaskEntry(_agent, _about, _held_out))
for _name, (_settings, _about) in MEDIUM.items():
    _about = f"{_settings.dataset}: {_about} (medium)"
    TASKS.add(_name, TaskEntry(_settings, _about, True))
for _name, _published in VELODROME.items():
    _about = f"{_published.settings.dataset}: {_published.about} (published)"
    TASKS.add(_name, TaskEntry(_published.settings, _about, True))


def task(name: str, **overrides: Any) -> Task:
    """The task called `name`, with its settings overridden.

        task("digits_conv", batch_size=32)

    Raises `UnknownName` for a name or a setting that does not exist (with near
    matches), `ConfigError` for a value out of range, and what `lopax.data.load` raises
    if its data are missing or corrupt.
    """
    settings = TASKS[name].settings
    if overrides:
        values = merge(to_dict(settings), overrides)
        settings = from_dict(type(settings), values, where=f"task {name!r}")
    return settings if isinstance(settings, Task) else settings.build()


def list_tasks(pattern: str = "*", *, only_available: bool = False) -> list[str]:
    """Names that match a shell pattern.

    **Arguments:**

    - `only_available`: leave out tasks whose data are not on this machine.
    """
    names = TASKS.names(pattern)
    return [n for n in names if task_available(n)] if only_available else names


def task_available(name: str) -> bool:
    """Whether the data of a task are on this machine; reads none of them."""
    entry = TASKS[name]
    return entry.dataset is None or available(entry.dataset)


def task_settings(name: str) -> dict[str, Any]:
    """The default settings of a task, which `task(name, ...)` can override."""
    return dataclasses.asdict(TASKS[name].settings)
