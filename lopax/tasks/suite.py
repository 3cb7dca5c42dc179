"""What a suite of tasks is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lopax._core.config import check_range, config_hash, to_dict
from lopax._core.renamed import renamed
from lopax._core.task import Task
from lopax.tasks.fresh import fresh
from lopax.tasks.supervised import SupervisedTask
from lopax.tasks.table import TASKS, task, task_available


@renamed(lanes="vmap_size")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One task of a suite."""

    name: str
    make: Callable[[], Task]
    """Loads the data and makes the task."""
    num_steps: int
    about: str = ""
    version: str = "1"
    """Changes with the definition, so that old results are not taken for new ones."""
    registered: str | None = None
    """The name in `lopax.tasks.TASKS`, if it is one of those."""
    vmap_size: int | None = None
    """Training runs side by side; fewer where memory or cache would not hold more."""
    passes_below: float | None = None
    """For pass/fail problems: the final loss that counts as solved."""

    def __post_init__(self) -> None:
        check_range(self, "num_steps", low=1)

    @property
    def available(self) -> bool:
        """Whether its data are on this machine; reads none of them."""
        return self.registered is None or task_available(self.registered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A table of tasks, and how often to evaluate on held-out data."""

    name: str
    about: str
    tasks: tuple[SuiteTask, ...]
    eval_every: int = 50
    eval_batches: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)


@renamed(lanes="vmap_size")
def registered(
    name: str, num_steps: int, *, vmap_size: int | None = None, **overrides: Any
) -> SuiteTask:
    """A task of `lopax.tasks.TASKS` as part of a suite."""
    entry = TASKS[name]
    settings = to_dict(entry.settings)
    return SuiteTask(
        name=name,
        make=lambda: task(name, **overrides),
        num_steps=num_steps,
        about=entry.about,
        version=config_hash([settings, overrides], length=8),
        registered=name,
        vmap_size=vmap_size,
    )


@renamed(lanes="vmap_size")
def refreshed(
    name: str,
    base: str,
    num_steps: int,
    freshness: dict[str, Any],
    *,
    vmap_size: int | None = None,
    **overrides: Any,
) -> SuiteTask:
    """The task `base` of `lopax.tasks.TASKS`, with other settings, and with batches
    that are never seen twice (`lopax.tasks.fresh`), under a name of its own."""
    entry = TASKS[base]

    def make() -> Task:
        made = task(base, **overrides)
        assert isinstance(made, SupervisedTask)
        return fresh(made, **freshness)

    said = ", ".join(f"{k} {v}" for k, v in freshness.items())
    return SuiteTask(
        name=name,
        make=make,
        num_steps=num_steps,
        about=f"{entry.about}; fresh in every batch: {said}",
        version=config_hash(
            [base, to_dict(entry.settings), overrides, freshness], length=8
        ),
        registered=base,
        vmap_size=vmap_size,
    )
