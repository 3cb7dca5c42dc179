"""Generalisation: held-out losses and accuracies as scores, beside training losses.

Every optimizer is taken at the learning rate that was chosen on training loss. "End"
is after the last update; "best" is at the evaluation with the lowest validation loss,
as if training had been stopped there. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lopax.statistics import aggregate, scores
from lopax.statistics.aggregate import Interval

Floats = NDArray[np.float64]
ACCURACY = "accuracy"


class HeldOut(NamedTuple):
    """One run per seed on one task: losses and accuracies at the end and at the best.

    Infinite losses (and accuracies of 0) for runs that diverged.
    """

    valid: Floats  # [S]
    test: Floats  # [S]
    valid_best: Floats  # [S]
    test_best: Floats  # [S] at the best validation loss
    accuracy: Floats | None  # [S] on test data
    accuracy_best: Floats | None  # [S]


class Generalisation(NamedTuple):
    """One optimizer over the tasks that count, relative to the reference.

    Losses: IQM of the reference's mean loss over the run's, above 1 is better.
    Accuracies: mean difference in points, above 0 is better; None without accuracies.
    """

    valid: Interval | None
    test: Interval | None
    valid_best: Interval | None
    test_best: Interval | None
    accuracy: Interval | None
    accuracy_best: Interval | None


def held_out(
    valid: Floats,
    test: Floats,
    metrics: Mapping[str, Floats],
    diverged: NDArray[np.bool_],
) -> HeldOut:
    """From curves of evaluations [S, E], and which runs diverged [S], to what is kept
    of them."""

    def clean(values: Floats, gone: float) -> Floats:
        return np.where(np.isfinite(values), values, gone)

    valid, test = clean(valid, np.inf), clean(test, np.inf)
    best, seeds = valid.argmin(axis=1), np.arange(len(valid))
    accuracy = metrics.get(f"test/{ACCURACY}")
    known = None if accuracy is None else clean(accuracy, 0.0)
    return HeldOut(
        valid=np.where(diverged, np.inf, valid[:, -1]),
        test=np.where(diverged, np.inf, test[:, -1]),
        valid_best=valid[seeds, best],
        test_best=test[seeds, best],
        accuracy=None if known is None else np.where(diverged, 0.0, known[:, -1]),
        accuracy_best=None if known is None else known[seeds, best],
    )


def generalisation(
    own: Mapping[str, HeldOut],
    reference: Mapping[str, HeldOut],
    start: Mapping[str, float],
    seed: int = 0,
) -> Generalisation:
    """Scores over tasks, with intervals.

    **Arguments:**

    - `own`, `reference`: task -> what was held out, for the tasks that count.
    - `start`: task -> the initial training loss (`scores.final_loss_score`).
    """

    def losses(field: str) -> Interval | None:
        columns = []
        for task, mine in own.items():
            target = float(np.mean(getattr(reference[task], field)))
            column = scores.final_loss_score(
                getattr(mine, field), target, start=start[task]
            )
            if not np.isnan(column).any():
                columns.append(column)
        if not columns:
            return None
        return aggregate.bootstrap(aggregate.iqm, np.stack(columns, 1), seed=seed)

    def points(field: str) -> Interval | None:
        columns = [
            100.0 * (getattr(mine, field) - np.mean(getattr(reference[task], field)))
            for task, mine in own.items()
            if getattr(mine, field) is not None
        ]
        if not columns:
            return None
        return aggregate.bootstrap(aggregate.mean, np.stack(columns, 1), seed=seed)

    return Generalisation(
        valid=losses("valid"),
        test=losses("test"),
        valid_best=losses("valid_best"),
        test_best=losses("test_best"),
        accuracy=points("accuracy"),
        accuracy_best=points("accuracy_best"),
    )
