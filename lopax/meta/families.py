"""From a recipe's task groups to task families."""

from __future__ import annotations

from collections.abc import Sequence

from lopax._core.config import from_dict
from lopax._core.task import SingleTask, TaskFamily
from lopax.meta.task_config import AgentsConfig, GroupConfig
from lopax.tasks import (
    Degradations,
    Degraded,
    FineTuningSettings,
    LogLoss,
    Reparametrised,
    fine_tuning,
    supervised_family,
)
from lopax.tasks.degraded import PROBABILITIES
from lopax.tasks.rl import agent_task


def build_family(config: GroupConfig) -> TaskFamily:
    """The family of one group.

    Raises `DatasetNotFound` / `UnknownName` if a data set or environment is not there,
    `ConfigError` for settings out of range, `MissingExtra` for an environment of a
    package that is not installed.
    """
    if isinstance(config, AgentsConfig):
        return SingleTask(
            agent_task(config.agent, config.environment, **config.settings)
        )
    if isinstance(config, FineTuningSettings):
        return fine_tuning(config).meta_training
    family: TaskFamily = supervised_family(
        config.network, config.datasets, **config.settings
    )
    if config.degrade:
        odds = dict.fromkeys(PROBABILITIES, 0.0) | config.degrade
        family = Degraded(family, from_dict(Degradations, odds, "tasks.degrade"))
    if config.augment != "none":
        family = Reparametrised(
            family, config.augment, low=config.augment_low, high=config.augment_high
        )
    return LogLoss(family) if config.meta_loss == "log" else family


def build_families(
    groups: Sequence[GroupConfig],
) -> tuple[TaskFamily, ...]:
    """The families of all groups; raises as `build_family`."""
    return tuple(build_family(group) for group in groups)
