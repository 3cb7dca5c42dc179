"""Thousands of training tasks from a few numbers.

What can differ inside one program differs from particle to particle: the data set,
width and activation (`varied_mlp`), rescaled parameters, worse gradients. What changes
shapes is drawn per group of tasks: kind of network, depth, widths, normalisation,
batch size. A recipe's `[variety]` table is replaced by the groups it draws, so the
saved configuration names every one of them (the idea of large mixed task sets: Metz et
al., 2022, arXiv 2211.09760).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lopax._core.config import check_range
from lopax._core.errors import ConfigError, UnknownName
from lopax.meta.task_config import TasksConfig
from lopax.tasks import FOUR_DATASETS

Draw = Callable[[np.random.Generator], dict[str, Any]]


def _power(rng: np.random.Generator, low: int, high: int) -> int:
    """A power of two in [low, high]."""
    return int(2 ** rng.integers(int(np.log2(low)), int(np.log2(high)) + 1))


def _layers(rng: np.random.Generator, most: int, low: int, high: int) -> list[int]:
    return [_power(rng, low, high)] * int(rng.integers(1, most + 1))


def _activation(rng: np.random.Generator) -> str:
    return str(rng.choice(["relu", "tanh", "gelu", "silu"]))


def _mlp(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "hidden": _layers(rng, 4, 8, 64),
        "activation": _activation(rng),
        "layer_norm": bool(rng.random() < 0.3),
        "batch_size": _power(rng, 8, 128),
    }


def _varied(rng: np.random.Generator) -> dict[str, Any]:
    return {"hidden": _layers(rng, 3, 16, 64), "batch_size": _power(rng, 8, 128)}


def _conv(rng: np.random.Generator) -> dict[str, Any]:
    channels = _layers(rng, 3, 4, 16)
    return {
        "channels": channels,
        "strides": [2] + [1] * (len(channels) - 1),
        "activation": _activation(rng),
        "norm": str(rng.choice(["none", "batch", "layer"])),
        "batch_size": _power(rng, 8, 32),
    }


def _autoencoder(rng: np.random.Generator) -> dict[str, Any]:
    outer = _power(rng, 16, 64)
    return {
        "hidden": [outer, _power(rng, 4, 16), outer],
        "activation": _activation(rng),
        "batch_size": _power(rng, 8, 64),
    }


def _vae(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "hidden": _layers(rng, 2, 16, 64),
        "code": _power(rng, 2, 16),
        "activation": _activation(rng),
        "batch_size": _power(rng, 8, 64),
    }


def _vision_transformer(rng: np.random.Generator) -> dict[str, Any]:
    width = _power(rng, 8, 32)
    return {
        "size": 8,
        "grey": True,
        "patch": int(rng.choice([2, 4])),
        "width": width,
        "inner": 2 * width,
        "heads": int(rng.choice([1, 2, 4])),
        "layers": int(rng.integers(1, 3)),
        "batch_size": _power(rng, 8, 32),
    }


def _recurrent(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "cell": str(rng.choice(["gru", "lstm"])),
        "embedding": _power(rng, 4, 16),
        "hidden": _power(rng, 8, 32),
        "length": _power(rng, 4, 16),
        "batch_size": _power(rng, 4, 16),
    }


def _transformer(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "width": _power(rng, 8, 32),
        "heads": int(rng.choice([1, 2, 4])),
        "layers": int(rng.integers(1, 3)),
        "length": _power(rng, 4, 16),
        "batch_size": _power(rng, 4, 16),
    }


def _learned_optimizer(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "hidden": [_power(rng, 4, 16)],
        "batch_size": _power(rng, 8, 32),
        "num_steps": int(rng.integers(4, 11)),
        "rule": "plain_mlp",
        "rule_settings": {"hidden": _power(rng, 4, 16)},
    }


IMAGE_KINDS: Mapping[str, Draw] = {
    "mlp": _mlp,
    "varied_mlp": _varied,
    "conv": _conv,
    "autoencoder": _autoencoder,
    "vae": _vae,
    "vision_transformer": _vision_transformer,
    "learned_optimizer": _learned_optimizer,
}
TEXT_KINDS: Mapping[str, Draw] = {"recurrent": _recurrent, "transformer": _transformer}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarietyConfig:
    """Raises `ConfigError` / `UnknownName` for settings that cannot be."""

    groups: int = 8
    """Groups of tasks to draw; kinds take turns."""
    seed: int = 0
    images: tuple[str, ...] = FOUR_DATASETS
    """Data sets with one number of classes; each group has all of them."""
    texts: tuple[str, ...] = ()
    """One is drawn for each group of a text kind."""
    kinds: tuple[str, ...] = ()
    """Which networks; default: all that there are data for."""
    augment: str = "mixed"
    degrade: dict[str, Any] = dataclasses.field(default_factory=dict)
    meta_loss: str = "log"

    def __post_init__(self) -> None:
        check_range(self, "groups", low=1)
        known = {**IMAGE_KINDS, **TEXT_KINDS}
        for kind in self.kinds:
            if kind not in known:
                raise UnknownName("kind of task", kind, known)
            texts = kind in TEXT_KINDS
            if not (self.texts if texts else self.images):
                wanted = "texts" if texts else "images"
                raise ConfigError(
                    f"VarietyConfig.kinds has {kind!r}: name data sets in {wanted}"
                )
        if not self.chosen_kinds:
            raise ConfigError("VarietyConfig: name data sets in images or texts")

    @property
    def chosen_kinds(self) -> tuple[str, ...]:
        """`kinds`, or all that there are data for."""
        if self.kinds:
            return self.kinds
        return (
            *(IMAGE_KINDS if self.images else ()),
            *(TEXT_KINDS if self.texts else ()),
        )


def draw_groups(config: VarietyConfig) -> tuple[TasksConfig, ...]:
    """The groups of a variety: the same for the same numbers, whatever the machine."""
    rng = np.random.default_rng(config.seed)
    groups = []
    for i in range(config.groups):
        kind = config.chosen_kinds[i % len(config.chosen_kinds)]
        text = kind in TEXT_KINDS
        draw = TEXT_KINDS[kind] if text else IMAGE_KINDS[kind]
        settings = draw(rng)
        # Reverse-mode through a run has gradients of its own order; leave it exact.
        plain = kind == "learned_optimizer"
        groups.append(
            TasksConfig(
                network=kind,
                datasets=(str(rng.choice(config.texts)),) if text else config.images,
                settings=settings,
                augment="none" if plain else config.augment,
                degrade={} if plain else dict(config.degrade),
                meta_loss=config.meta_loss,
            )
        )
    return tuple(groups)
