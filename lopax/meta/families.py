"""From a recipe's task groups to task families."""

from __future__ import annotations

from collections.abc import Sequence

from lopax._core.task import TaskFamily
from lopax.meta.config import TasksConfig
from lopax.tasks import LogLoss, Reparametrised, supervised_family


def build_family(config: TasksConfig) -> TaskFamily:
    """The family of one group.

    Raises `DatasetNotFound` / `UnknownName` if a data set is not there, `ConfigError`
    for settings out of range.
    """
    family: TaskFamily = supervised_family(
        config.network, config.datasets, **config.settings
    )
    if config.augment != "none":
        family = Reparametrised(
            family, config.augment, low=config.augment_low, high=config.augment_high
        )
    return LogLoss(family) if config.meta_loss == "log" else family


def build_families(groups: Sequence[TasksConfig]) -> tuple[TaskFamily, ...]:
    """The families of all groups; raises as `build_family`."""
    return tuple(build_family(group) for group in groups)
