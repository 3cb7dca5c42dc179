"""The learned optimizers and the registry of their names."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lopax._core.config import from_dict
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.registry import Registry
from lopax.architectures.classes import (
    L2LGD2,
    L2OGRU,
    L2OLSTM,
    RNNMLP,
    STAR,
    AdafacMLP,
    Celo,
    Celo2,
    Celo2Base,
    CeloAdam,
    LearnedAdam,
    LearnedMuon,
    LearnedSGD,
    LinearOptim,
    MuLO,
    NNAdam,
    Optim4RL,
    PlainMLP,
    ScheduledAdam,
    VeLO,
)
from lopax.architectures.l3rs import L3RS, L3RSConfig


class Entry(NamedTuple):
    """An architecture's class and the class of its settings."""

    make: Any
    config: Any


ARCHITECTURES: Registry[Entry] = Registry("architecture")
"""Every rule by name, with the class of its settings."""

for _made in (
    Celo,
    CeloAdam,
    Celo2,
    Celo2Base,
    VeLO,
    AdafacMLP,
    PlainMLP,
    MuLO,
    LearnedMuon,
    STAR,
    RNNMLP,
    NNAdam,
    L2OLSTM,
    L2OGRU,
    LearnedSGD,
    LearnedAdam,
    ScheduledAdam,
    Optim4RL,
    LinearOptim,
    L2LGD2,
):
    ARCHITECTURES.add(_made.name, Entry(_made, _made.rule_class.config_class))
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
