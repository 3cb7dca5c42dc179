"""From a recipe's task section to a task family."""

from __future__ import annotations

from lopax._core.task import TaskFamily
from lopax.meta.config import TasksConfig
from lopax.tasks import Reparametrised, image_mlp_family


def build_family(config: TasksConfig) -> TaskFamily:
    """The family of a configuration.

    Raises `DatasetNotFound` / `UnknownName` if a data set is not there.
    """
    family = image_mlp_family(
        config.datasets,
        size=config.size,
        grey=config.grey,
        hidden=config.hidden,
        batch_size=config.batch_size,
        activation=config.activation,
    )
    if config.augment == "none":
        return family
    return Reparametrised(
        family, config.augment, low=config.augment_low, high=config.augment_high
    )
