"""The one-setting league: what optimizers score that nobody tunes on each task.

A practitioner has one setting, not fifteen. Of an optimizer with a grid this takes the
single learning rate that is best over all tasks, in hindsight, and, fairer, for each
task the one that is best over the others. Learned and tuning-free rules have one
setting anyway and stand in the same table. numpy only.

Scores are of the mean curve over seeds, which is all that is kept of the rates that
were not chosen (`lopax.evaluate.results.shipped`); so there is no interval over seeds.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lopax.evaluate.results.summary import Summary
from lopax.statistics import aggregate, scores

Floats = NDArray[np.float64]


class Setting(NamedTuple):
    """What one way of choosing the learning rate gives, over the scored tasks."""

    iqm: float
    lowest: float  # task
    rates: tuple[float, ...]  # the rates chosen, ascending; none for untuned optimizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """One optimizer in the league."""

    optimizer: str
    kind: str
    budget: int  # learning rates tried
    tuned: Setting  # on each task
    hindsight: Setting  # the best single one over all tasks
    held_out: Setting | None  # the best one over the other tasks; None with one task

    @property
    def one_setting(self) -> Setting:
        """What the league is ordered by."""
        return self.held_out or self.hindsight


def league(summary: Summary) -> tuple[Standing, ...]:
    """All optimizers of a summary, the best without tuning first."""
    found = [_standing(summary, name) for name in summary.optimizers]
    return tuple(sorted(found, key=lambda s: -s.one_setting.iqm))


def rate_scores(summary: Summary, optimizer: str) -> Floats:
    """[tasks, rates] scores of the mean curve over seeds; 0 where a seed diverged."""
    rows = []
    for task in summary.scored:
        final = summary.entries[optimizer, task].tuned.final
        score = scores.final_loss_score(
            final, summary.target[task], start=summary.start[task]
        )
        rows.append(np.nan_to_num(score, nan=0.0))
    return np.stack(rows)


def _standing(summary: Summary, name: str) -> Standing:
    spec = summary.study.spec(name)
    table, rates = rate_scores(summary, name), spec.learning_rates
    count, _ = table.shape

    def setting(chosen: NDArray[np.int64]) -> Setting:
        values = table[np.arange(count), chosen]
        used = sorted({rates[i] for i in chosen}) if rates else []
        return Setting(_iqm(values), float(values.min()), tuple(used))

    def best(rows: Floats) -> int:
        return int(np.argmax([_iqm(column) for column in rows.T]))

    return Standing(
        optimizer=name,
        kind=spec.kind,
        budget=len(rates) or 1,
        tuned=setting(table.argmax(axis=1)),
        hindsight=setting(np.full(count, best(table))),
        held_out=None
        if count < 2
        else setting(
            np.asarray([best(np.delete(table, i, axis=0)) for i in range(count)])
        ),
    )


def _iqm(values: Floats) -> float:
    return float(aggregate.iqm(values[:, None]))
