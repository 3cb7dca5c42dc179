"""Settings of the groups of training tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax.tasks import FOUR_DATASETS, NETWORKS, FineTuningSettings
from lopax.tasks.rl import AGENTS

AUGMENTATIONS = ("none", "global", "tensor", "parameter", "mixed")
META_LOSSES = ("loss", "log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """A group of training tasks: one network on one or more data sets.

    A run may have several groups; each gets an equal part of the particles.
    """

    datasets: tuple[str, ...] = FOUR_DATASETS
    """Names from `lopax list datasets`; one stratum each."""
    network: str = "mlp"
    """A key of `lopax.tasks.NETWORKS`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of that network (hidden, batch_size, size...). The defaults of "mlp" are the
    published meta-training task: 8x8 grey, one layer of 32 ReLU units, batch 64."""
    augment: str = "global"
    """Reparametrisation level; "mixed" draws one per task, as VeLO."""
    augment_low: float = 1e-3
    augment_high: float = 1e3
    degrade: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Probabilities of worse gradients, see `lopax.tasks.Degradations` (the others are
    zero here); {}: none."""
    meta_loss: str = "loss"
    """"log": the logarithm of the loss (see `lopax.tasks.LogLoss`)."""

    def __post_init__(self) -> None:
        check_choice(self, "augment", AUGMENTATIONS)
        check_choice(self, "network", NETWORKS)
        check_choice(self, "meta_loss", META_LOSSES)
        check_range(self, "augment_low", above=0.0)
        check_range(self, "augment_high", low=self.augment_low)
        if not self.datasets:
            raise ConfigError("TasksConfig.datasets = (): name at least one data set")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentsConfig:
    """A group of training tasks: agents that learn to act in one environment."""

    environment: str
    """A name of `lopax.tasks.rl.ENVIRONMENTS`, or gymnax:NAME."""
    agent: str = "a2c"
    """A key of `lopax.tasks.rl.AGENTS`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the agent (hidden, envs, length, gamma...). `envs` is how many environments
    each agent's gradients are averaged over."""

    def __post_init__(self) -> None:
        check_choice(self, "agent", AGENTS)


GroupConfig = TasksConfig | AgentsConfig | FineTuningSettings
"""A group of training tasks; the settings it has tell which kind it is."""
