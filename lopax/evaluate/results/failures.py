"""The failure map: which optimizer solves which pass/fail problem. numpy only."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from lopax._core.errors import ConfigError
from lopax.evaluate.results.study import Study
from lopax.statistics import scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureMap:
    """Shares of seeds that solved a problem, at the optimizer's best learning rate."""

    optimizers: tuple[str, ...]
    problems: tuple[str, ...]
    solved: NDArray[np.float64]  # [optimizers, problems] in [0, 1]; NaN: not run
    rates: NDArray[np.int64]  # [optimizers, problems] learning rates that solve it
    budgets: tuple[int, ...]  # [optimizers] learning rates tried; 1 if untuned

    def texts(self) -> list[list[str]]:
        """What to write into each cell: rates that solve it, or seeds that did."""
        return [
            [self._text(i, j) for j in range(len(self.problems))]
            for i in range(len(self.optimizers))
        ]

    def _text(self, i: int, j: int) -> str:
        if np.isnan(self.solved[i, j]):
            return "–"
        if self.budgets[i] > 1:
            return f"{self.rates[i, j]}/{self.budgets[i]}"
        return f"{100 * self.solved[i, j]:.0f}%"


def failure_map(study: Study) -> FailureMap:
    """Reads pass or fail off a study whose problems say what counts as solved.

    A run solves a problem if it did not diverge and its final smoothed loss is at or
    below `Problem.passes_below`. A learning rate solves it if all seeds do.

    Raises `ConfigError` if no problem has a bound.
    """
    problems = [p for p in study.problems if p.passes_below is not None]
    if not problems:
        raise ConfigError(
            "none of the study's problems says what counts as solved; set passes_below"
        )
    shape = (len(study.optimizers), len(problems))
    solved, rates = np.full(shape, np.nan), np.zeros(shape, np.int64)
    for i, spec in enumerate(study.optimizers):
        for j, problem in enumerate(problems):
            group = study.groups.get((spec.name, problem.name))
            if group is None or problem.passes_below is None:
                continue
            final = scores.final_loss(group.train, group.diverged)  # [S, L]
            passed = final <= problem.passes_below
            solved[i, j] = passed.mean(axis=0).max()
            rates[i, j] = int(passed.all(axis=0).sum())
    return FailureMap(
        optimizers=tuple(s.name for s in study.optimizers),
        problems=tuple(p.name for p in problems),
        solved=solved,
        rates=rates,
        budgets=tuple(len(s.learning_rates) or 1 for s in study.optimizers),
    )
