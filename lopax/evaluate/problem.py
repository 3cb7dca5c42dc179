"""A task to train, how to make it, and for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.renamed import renamed
from lopax._core.task import Task
from lopax.evaluate.specs import OptimizerSpec, check_unique


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long to train and how often to look."""

    num_steps: int = 2_000
    """Updates; also the horizon that learned optimizers are told."""
    eval_every: int = 50
    """Updates between evaluations on the "valid" and "test" splits."""
    eval_batches: int = 5
    """Batches per evaluation and split."""
    final_batches: int = 10
    """Batches of the last evaluation, after all updates."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "eval_every", "eval_batches", "final_batches"):
            check_range(self, name, low=1, high=2**31 - 1)

    @property
    def eval_steps(self) -> tuple[int, ...]:
        """Updates made before each evaluation; the last one is `num_steps`."""
        return (*range(0, self.num_steps, self.eval_every), self.num_steps)


@renamed(lanes="vmap_size")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A task to train, how to make it, and for how long."""

    name: str
    make: Callable[[], Task]
    """Called in the process that runs it; may load data."""
    config: RunConfig
    version: str = "1"
    """Changes whenever the task's definition does; part of the run's key."""
    note: str = ""
    passes_below: float | None = None
    """For pass/fail problems: the final loss that counts as solved."""
    vmap_size: int | None = None
    """Training runs side by side, where the default does not suit; not in the key."""
    reference: str | None = None
    """A text that makes the same problem in another process (`lopax.evaluate.refs`);
    None if only this process can run it."""


def check_grid(
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
) -> None:
    """Raises `ConfigError` for an empty grid, repeated names or repeated seeds."""
    check_unique(list(optimizers))
    names = [p.name for p in problems]
    if not optimizers or not problems or not seeds:
        raise ConfigError(
            f"a grid of {len(optimizers)} optimizers, {len(problems)} tasks and "
            f"{len(seeds)} seeds has nothing to run; give at least one of each"
        )
    named: list[tuple[str, list[Any]]] = [("task", names), ("seed", list(seeds))]
    for what, values in named:
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ConfigError(f"{what} {twice[0]!r} is in the grid more than once")
