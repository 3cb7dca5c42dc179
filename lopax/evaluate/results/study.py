"""A study: which optimizers on which tasks with which seeds, and its results.

Stored runs stand in groups, one per (optimizer, task). Missing runs stay visible: a
group is either complete over all seeds or not there, and every aggregate asks for
complete groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from lopax._core.errors import IncompleteResults
from lopax.evaluate.problem import Problem
from lopax.evaluate.specs import OptimizerSpec
from lopax.statistics.curves import Curves
from lopax.statistics.tuning import Tuned


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunGroup(Curves):
    """All runs of one optimizer on one task."""

    headers: tuple[Mapping[str, Any], ...]  # one of each seed
    sweep: Tuned | None = None  # if L = 1 stands for the best rate of a larger sweep

    def best(self) -> tuple[Tuned, int]:
        """The sweep over learning rates, and where its best rate is on the L axis."""
        return super().best() if self.sweep is None else (self.sweep, 0)

    @property
    def cost(self) -> Mapping[str, Any] | None:
        """The measured cost, from the first run that has one."""
        return next((h["cost"] for h in self.headers if h.get("cost")), None)


class MissingRun(NamedTuple):
    """A run that is not there, and why."""

    optimizer: str
    task: str
    seed: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Results of a grid. Build one with `collect`."""

    title: str
    optimizers: tuple[OptimizerSpec, ...]
    problems: tuple[Problem, ...]
    seeds: tuple[int, ...]
    groups: Mapping[tuple[str, str], RunGroup]
    """(optimizer, task) -> its runs, where none is missing."""
    missing: tuple[MissingRun, ...] = ()

    @property
    def cells(self) -> Mapping[tuple[str, str], RunGroup]:
        """The old name of `groups`."""
        return self.groups

    @property
    def holes(self) -> tuple[MissingRun, ...]:
        """The old name of `missing`."""
        return self.missing

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.problems)

    @property
    def complete_tasks(self) -> tuple[str, ...]:
        """Tasks for which every optimizer has all seeds."""
        broken = {run.task for run in self.missing}
        return tuple(t for t in self.tasks if t not in broken)

    def group(self, optimizer: str, task: str) -> RunGroup:
        """Raises `IncompleteResults` if any run of the group is missing."""
        try:
            return self.groups[optimizer, task]
        except KeyError:
            raise IncompleteResults(
                f"no complete results for {optimizer!r} on {task!r}; run the grid "
                "again, or leave the task out"
            ) from None

    def spec(self, optimizer: str) -> OptimizerSpec:
        for spec in self.optimizers:
            if spec.name == optimizer:
                return spec
        raise IncompleteResults(f"{optimizer!r} is not among the optimizers compared")
