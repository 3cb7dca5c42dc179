"""From a study's curves to the numbers and words of a report.

numpy only. Everything is relative to one tuned reference (Adam): a run's score is the
reference's final loss over its own (both by the logarithm below 2 % of the initial
loss), its speed-up the run length over the updates it took to get to the reference's
final loss. Tasks with missing runs, and tasks whose losses
make a ratio meaningless, are left out of every aggregate and listed by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lopax._core.errors import ConfigError, IncompleteResults
from lopax.evaluate.results.seconds import in_seconds
from lopax.evaluate.results.study import RunGroup, Study
from lopax.statistics import aggregate, scores
from lopax.statistics.aggregate import Interval
from lopax.statistics.curves import READ_OUT
from lopax.statistics.held_out import (
    Generalisation,
    HeldOut,
    generalisation,
    held_out,
)
from lopax.statistics.significance import PairedTest, paired_test
from lopax.statistics.tuning import Tuned
from lopax.statistics.verdict import verdict

Floats = NDArray[np.float64]


class Entry(NamedTuple):
    """One optimizer on one task, at its best learning rate if it is tuned."""

    rate: float | None  # the learning rate chosen, None for untuned optimizers
    tuned: Tuned
    curves: Floats  # [S, T] smoothed training loss
    diverged: NDArray[np.bool_]  # [S]
    nonfinite: NDArray[np.int64]  # [S] steps with a non-finite loss
    final: Floats  # [S] final smoothed training loss; inf if diverged
    score: Floats  # [S] reference / final; 0 if diverged; NaN if undefined
    steps: Floats  # [S] updates to the reference's final loss; inf if never
    speedup: Floats  # [S]
    held_out: HeldOut
    metrics: dict[str, Floats]  # each [S], final


class Row(NamedTuple):
    """One optimizer over all tasks that count."""

    optimizer: str
    kind: str
    budget: int  # learning rates tried
    runs: int
    diverged: int
    iqm: Interval
    median: Interval
    mean: Interval
    optimality_gap: Interval
    speedup: Interval  # IQM of speed-ups
    in_seconds: Interval | None  # the same in seconds; None if not timed
    held_out: Generalisation
    beats: Interval | None  # probability that a run beats the reference's
    test: PairedTest | None
    verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a report says, as data."""

    study: Study
    reference: str
    rows: tuple[Row, ...]  # best IQM first
    entries: Mapping[tuple[str, str], Entry]  # (optimizer, task)
    scored: tuple[str, ...]  # tasks that count
    left_out: Mapping[str, str]  # task -> why it does not count
    target: Mapping[str, float]  # task -> the reference's final loss
    start: Mapping[str, float]  # task -> the initial training loss

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names, best IQM first."""
        return tuple(row.optimizer for row in self.rows)

    def table(self, field: str, optimizer: str) -> Floats:
        """[S, tasks] of "score", "speedup", "steps" or "final" over scored tasks."""
        columns = [getattr(self.entries[optimizer, t], field) for t in self.scored]
        return np.stack(columns, axis=1)

    def row(self, optimizer: str) -> Row:
        return next(r for r in self.rows if r.optimizer == optimizer)


def summarise(
    study: Study,
    reference: str = "adam",
    *,
    allow_missing: bool = False,
    seed: int = 0,
) -> Summary:
    """Scores, aggregates, intervals and verdicts of a study.

    **Arguments:**

    - `reference`: the optimizer that scores are relative to; it must be in the study.
    - `allow_missing`: leave tasks with missing runs out (they are listed in
        `left_out`) instead of raising.
    - `seed`: of the bootstrap and the permutation tests.

    Raises `IncompleteResults` for missing runs, or if no task is left to score.
    """
    if reference not in [s.name for s in study.optimizers]:
        names = ", ".join(s.name for s in study.optimizers)
        raise ConfigError(f"reference {reference!r} is not in the study ({names})")
    if study.missing and not allow_missing:
        shown = [f"{h.optimizer} on {h.task}, seed {h.seed}" for h in study.missing[:5]]
        more = f" and {len(study.missing) - 5} more" if len(study.missing) > 5 else ""
        raise IncompleteResults(
            f"{len(study.missing)} runs are missing: {'; '.join(shown)}{more}. Run the "
            "grid again, or pass allow_missing=True to leave those tasks out, visibly"
        )
    entries: dict[tuple[str, str], Entry] = {}
    left_out: dict[str, str] = {}
    target: dict[str, float] = {}
    start: dict[str, float] = {}
    for task in study.tasks:
        if (reference, task) not in study.groups:
            left_out[task] = f"{reference} has missing runs"
            continue
        group = study.group(reference, task)
        tuned, column = group.best()
        target[task] = float(tuned.final[tuned.index])
        # The loss before the first update is the same for all optimizers.
        start[task] = float(np.mean(group.train[:, column, 0], dtype=np.float64))
        for spec in study.optimizers:
            if (spec.name, task) in study.groups:
                group = study.group(spec.name, task)
                rates = spec.learning_rates
                entries[spec.name, task] = _entry(
                    group, rates, target[task], start[task]
                )
        reason = _why_not(study, entries, task, target[task], reference)
        if reason:
            left_out[task] = reason
    scored = tuple(t for t in study.tasks if t not in left_out)
    if not scored:
        listed = "; ".join(f"{t}: {why}" for t, why in left_out.items())
        raise IncompleteResults(f"no task can be scored ({listed})")
    partial = Summary(
        study=study,
        reference=reference,
        rows=(),
        entries=entries,
        scored=scored,
        left_out=left_out,
        target=target,
        start=start,
    )
    rows = [_row(partial, spec.name, seed) for spec in study.optimizers]
    rows.sort(key=lambda r: -r.iqm.value)
    return dataclasses.replace(partial, rows=tuple(rows))


def _entry(
    group: RunGroup, rates: tuple[float, ...], target: float, start: float
) -> Entry:
    tuned, best = group.best()
    curves = np.asarray(group.train[:, best], np.float64)
    diverged = group.diverged[:, best]
    final = scores.final_loss(curves, diverged)
    if group.read_out is not None:
        final = np.asarray(group.read_out[:, best], np.float64)
        final = np.where(diverged | np.isnan(final), np.inf, final)
    metrics = {
        name: np.asarray(values[:, best], np.float64)
        for name, values in group.metrics.items()
        if name != READ_OUT
    }

    steps = scores.steps_to_target(curves, target)
    return Entry(
        rate=rates[tuned.index] if rates else None,
        tuned=tuned,
        curves=scores.smooth(curves),
        diverged=diverged,
        nonfinite=group.nonfinite[:, best].astype(np.int64),
        final=final,
        score=scores.final_loss_score(final, target, start),
        steps=np.where(diverged, np.inf, steps),
        speedup=scores.speedup(curves, target, diverged),
        held_out=held_out(
            np.asarray(group.valid[:, best], np.float64),
            np.asarray(group.test[:, best], np.float64),
            metrics,
            diverged,
        ),
        metrics={name: values[:, -1] for name, values in metrics.items()},
    )


def _why_not(
    study: Study,
    entries: Mapping[tuple[str, str], Entry],
    task: str,
    target: float,
    reference: str,
) -> str | None:
    """Why a task cannot be scored, or None."""
    missing = [h for h in study.missing if h.task == task]
    if missing:
        names = sorted({h.optimizer for h in missing})
        runs = "run" if len(missing) == 1 else "runs"
        return f"{len(missing)} missing {runs}: {', '.join(names)}"
    if not math.isfinite(target):
        return f"{reference} diverged at every learning rate"
    here = [entries[s.name, task] for s in study.optimizers]
    if any(np.isnan(e.score).any() for e in here):
        return "losses at or below zero: a ratio of losses means nothing"
    return None


def _row(summary: Summary, name: str, seed: int) -> Row:
    spec = summary.study.spec(name)
    score = summary.table("score", name)
    interval = {
        key: aggregate.bootstrap(statistic, score, seed=seed)
        for key, statistic in aggregate.STATISTICS.items()
    }
    beats, test = None, None
    if name != summary.reference:
        other = summary.table("score", summary.reference)
        beats = aggregate.bootstrap_pair(
            aggregate.probability_of_improvement, score, other, seed=seed
        )
        test = paired_test(score - other, seed=seed)
    timed = in_seconds(
        summary.study,
        name,
        summary.reference,
        {t: summary.entries[name, t].speedup for t in summary.scored},
    )
    ours, theirs = (
        {t: summary.entries[n, t].held_out for t in summary.scored}
        for n in (name, summary.reference)
    )
    diverged = sum(int(summary.entries[name, t].diverged.sum()) for t in summary.scored)
    return Row(
        optimizer=name,
        kind=spec.kind,
        budget=len(spec.learning_rates) or 1,
        runs=score.size,
        diverged=diverged,
        iqm=interval["iqm"],
        median=interval["median"],
        mean=interval["mean"],
        optimality_gap=interval["optimality_gap"],
        speedup=aggregate.bootstrap(
            aggregate.iqm, summary.table("speedup", name), seed=seed
        ),
        in_seconds=None
        if timed is None
        else aggregate.bootstrap(aggregate.iqm, timed, seed=seed),
        held_out=generalisation(ours, theirs, summary.start, seed),
        beats=beats,
        test=test,
        verdict=verdict(interval["iqm"], test, diverged, score.size, summary.reference),
    )
