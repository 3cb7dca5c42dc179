"""The learned optimizers, one file each, and the registry of their names."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lopax._core.config import from_dict
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.registry import Registry
from lopax.architectures.celo import Celo, CeloConfig
from lopax.architectures.celo_adam import CeloAdam, CeloAdamConfig


class Entry(NamedTuple):
    """An architecture's class and the class of its settings."""

    make: Any
    config: Any


ARCHITECTURES: Registry[Entry] = Registry("architecture")
ARCHITECTURES.add("celo", Entry(Celo, CeloConfig))
ARCHITECTURES.add("celo_adam", Entry(CeloAdam, CeloAdamConfig))


def architecture(name: str, **config: Any) -> LearnedOptimizer:
    """The architecture called `name`, with its settings overridden by `config`.

    Raises `UnknownName` for a name or a setting that does not exist (with near
    matches) and `ConfigError` for a value outside its legal range.
    """
    entry = ARCHITECTURES[name]
    return entry.make(from_dict(entry.config, config, where=f"architecture {name!r}"))


def config_of(optimizer: LearnedOptimizer) -> dict[str, Any]:
    """The settings of an architecture as plain values."""
    return dataclasses.asdict(optimizer.config)  # type: ignore[attr-defined]


__all__ = ["ARCHITECTURES", "Entry", "architecture", "config_of"]
