"""What of a task's loss the meta-loss sees.

Every task bounds its loss (`Task.normalize`). On top of that, `LogLoss` takes the
logarithm: then a loss that falls from 0.02 to 0.01 counts as much as one that falls
from 2 to 1, tasks whose losses differ by orders of magnitude weigh alike, and the
meta-loss moves with the logarithm of the ratio that optimizers are judged by.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.config import check_range
from lopax._core.task import Task, TaskFamily, WrappedTask
from lopax._core.types import Key, Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LogLossTask(WrappedTask):
    """`base`, normalised as ln(floor + max(loss, 0) / bound), which is at most
    ln(floor + 1)."""

    base: Task
    floor: float = dataclasses.field(default=1e-3, metadata={"static": True})

    def normalize(self, loss: Scalar) -> Scalar:
        bound = self.base.normalize(jnp.asarray(jnp.inf, jnp.float32))
        share = jnp.maximum(self.base.normalize(loss), 0.0) / bound
        return jnp.log(self.floor + share)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LogLoss(TaskFamily):
    """A family judged by the logarithm of its losses. A pytree if its base is.

    **Arguments:**

    - `floor`: the share of the loss bound below which improvements stop to count.

    Raises `ConfigError` unless floor > 0.
    """

    base: TaskFamily
    floor: float = dataclasses.field(default=1e-3, metadata={"static": True})

    def __post_init__(self) -> None:
        check_range(self, "floor", above=0.0)

    @property
    def num_strata(self) -> int:  # type: ignore[override]
        return self.base.num_strata

    def sample(self, key: Key, stratum: Any = None) -> Any:
        return self.base.sample(key, stratum)

    def task(self, config: Any) -> LogLossTask:
        return LogLossTask(self.base.task(config), self.floor)
