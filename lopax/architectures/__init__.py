"""The learned optimizers, one file each, and the registry of their names."""

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
from lopax.rules.adafac_mlp import AdafacMLPConfig
from lopax.rules.celo import CeloConfig
from lopax.rules.celo2 import Celo2BaseConfig, Celo2Config
from lopax.rules.celo_adam import CeloAdamConfig
from lopax.rules.hypers import LearnedAdamConfig, LearnedSGDConfig, ScheduledAdamConfig
from lopax.rules.l2o_gru import L2OGRUConfig
from lopax.rules.l2o_lstm import L2OLSTMConfig
from lopax.rules.learned_muon import LearnedMuonConfig
from lopax.rules.mulo import MuLOConfig
from lopax.rules.nn_adam import NNAdamConfig
from lopax.rules.optim4rl import ElementGRUConfig
from lopax.rules.plain_mlp import PlainMLPConfig
from lopax.rules.rnn_mlp import RNNMLPConfig
from lopax.rules.star import STARConfig
from lopax.rules.velo import VeLOConfig


class Entry(NamedTuple):
    """An architecture's class and the class of its settings."""

    make: Any
    config: Any


ARCHITECTURES: Registry[Entry] = Registry("architecture")
"""Every rule by name, with the class of its settings."""

ARCHITECTURES.add("celo", Entry(Celo, CeloConfig))
ARCHITECTURES.add("celo_adam", Entry(CeloAdam, CeloAdamConfig))
ARCHITECTURES.add("celo2", Entry(Celo2, Celo2Config))
ARCHITECTURES.add("celo2_base", Entry(Celo2Base, Celo2BaseConfig))
ARCHITECTURES.add("velo", Entry(VeLO, VeLOConfig))
ARCHITECTURES.add("adafac_mlp", Entry(AdafacMLP, AdafacMLPConfig))
ARCHITECTURES.add("plain_mlp", Entry(PlainMLP, PlainMLPConfig))
ARCHITECTURES.add("mulo", Entry(MuLO, MuLOConfig))
ARCHITECTURES.add("learned_muon", Entry(LearnedMuon, LearnedMuonConfig))
ARCHITECTURES.add("star", Entry(STAR, STARConfig))
ARCHITECTURES.add("rnn_mlp", Entry(RNNMLP, RNNMLPConfig))
ARCHITECTURES.add("nn_adam", Entry(NNAdam, NNAdamConfig))
ARCHITECTURES.add("l2o_lstm", Entry(L2OLSTM, L2OLSTMConfig))
ARCHITECTURES.add("l2o_gru", Entry(L2OGRU, L2OGRUConfig))
ARCHITECTURES.add("l3rs", Entry(L3RS, L3RSConfig))
ARCHITECTURES.add("learned_sgd", Entry(LearnedSGD, LearnedSGDConfig))
ARCHITECTURES.add("learned_adam", Entry(LearnedAdam, LearnedAdamConfig))
ARCHITECTURES.add("scheduled_adam", Entry(ScheduledAdam, ScheduledAdamConfig))
ARCHITECTURES.add("optim4rl", Entry(Optim4RL, ElementGRUConfig))
ARCHITECTURES.add("linear_optim", Entry(LinearOptim, ElementGRUConfig))
ARCHITECTURES.add("l2lgd2", Entry(L2LGD2, ElementGRUConfig))


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
