"""The learned optimizers and the registry of their names."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lopax._core.config import from_dict
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.registry import Registry, by_rule
from lopax.architectures import classes
from lopax.architectures.described import Described
from lopax.architectures.l3rs import L3RS, L3RSConfig


class Entry(NamedTuple):
    """An architecture's class and the class of its settings."""

    make: Any
    config: Any


ARCHITECTURES: Registry[Entry] = Registry("architecture")
"""Every rule by name, with the class of its settings."""

for _name, _made in by_rule(Described, vars(classes)).items():
    ARCHITECTURES.add(_name, Entry(_made, _made.rule_class.config_class))
ARCHITECTURES.add(L3RS.name, Entry(L3RS, L3RSConfig))


def architecture(name: str, /, **config: Any) -> LearnedOptimizer:
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
