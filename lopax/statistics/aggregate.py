"""Aggregates over a table of scores, and stratified bootstrap intervals for them.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(2021, arXiv 2108.13264). numpy only. Score tables are [runs, tasks]; every aggregate
also accepts leading batch axes [..., runs, tasks], so that all bootstrap resamples are
computed in one call.

A table with a hole has no aggregate: NaN raises `IncompleteResults`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax._core.errors import ConfigError, IncompleteResults

Table = NDArray[np.float64]
Statistic = Callable[[Table], Table]


class Interval(NamedTuple):
    """A point estimate and its bootstrap interval."""

    value: float
    low: float
    high: float


def iqm(scores: Table) -> Table:
    """Interquartile mean: the mean of the middle half of all runs of all tasks.

    [..., runs, tasks] -> [...]. With n scores, floor(n / 4) are cut at either end.
    """
    flat = np.sort(_flatten(scores), axis=-1)
    cut = int(0.25 * flat.shape[-1])
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def median(scores: Table) -> Table:
    """Median over tasks of each task's mean score; [..., runs, tasks] -> [...]."""
    return np.median(np.mean(scores, axis=-2), axis=-1)


def mean(scores: Table) -> Table:
    """Mean over tasks of each task's mean score; [..., runs, tasks] -> [...]."""
    return np.mean(scores, axis=(-2, -1))


def optimality_gap(scores: Table, ceiling: float = 1.0) -> Table:
    """How far runs fall short of `ceiling` on average; more than it earns nothing.

    [..., runs, tasks] -> [...]; smaller is better.
    """
    return ceiling - np.mean(np.minimum(scores, ceiling), axis=(-2, -1))


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def probability_of_improvement(x: Table, y: Table) -> Table:
    """Chance that a run of x scores above a run of y on the same task, ties half.

    **Arguments:**

    - `x`: [..., runs_x, tasks].
    - `y`: [..., runs_y, tasks].

    **Returns:** [...] in [0, 1], averaged over tasks: the Mann-Whitney statistic
    divided by the number of pairs.
    """
    a, b = x[..., :, None, :], y[..., None, :, :]
    wins = (a > b).mean(axis=(-3, -2)) + 0.5 * (a == b).mean(axis=(-3, -2))
    return wins.mean(axis=-1)


STATISTICS: Mapping[str, Statistic] = {
    "iqm": iqm,
    "median": median,
    "mean": mean,
    "optimality_gap": optimality_gap,
}


def resample_indices(
    rng: np.random.Generator, repeats: int, runs: int, tasks: int
) -> NDArray[np.int64]:
    """[repeats, runs, tasks] run indices drawn with replacement within each task."""
    return rng.integers(0, runs, size=(repeats, runs, tasks))


def resample(scores: Table, rng: np.random.Generator, repeats: int) -> Table:
    """[repeats, runs, tasks]: each task's runs drawn anew; tasks stay (the strata)."""
    index = resample_indices(rng, repeats, *scores.shape)
    return np.take_along_axis(scores[None], index, axis=1)


def bootstrap(
    statistic: Statistic,
    scores: ArrayLike,
    *,
    repeats: int = 5_000,
    level: float = 0.95,
    seed: int = 0,
    budget: int = 4_000_000,
) -> Interval:
    """A statistic of a score table with its stratified percentile interval.

    **Arguments:**

    - `scores`: [runs, tasks].
    - `level`: coverage asked for. With three runs per task percentile intervals are
        somewhat too narrow; more seeds, not more repeats, mend that.
    - `seed`: of a generator of its own, so that a report is reproducible and nobody
        else's random numbers are disturbed.
    - `budget`: elements of the largest array made at once.

    Raises `IncompleteResults` for NaN scores, `ConfigError` for a bad shape or level.
    """
    scores = check_table(scores)
    rng = np.random.default_rng(seed)
    per_chunk = max(1, min(repeats, budget // max(scores.size, 1)))
    draws = []
    for start in range(0, repeats, per_chunk):
        count = min(per_chunk, repeats - start)
        draws.append(statistic(resample(scores, rng, count)))
    return _interval(float(statistic(scores)), np.concatenate(draws), level)


def bootstrap_pair(
    statistic: Callable[[Table, Table], Table],
    x: ArrayLike,
    y: ArrayLike,
    *,
    repeats: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of a statistic of two tables (with the same tasks)."""
    x, y = check_table(x), check_table(y)
    if x.shape[1] != y.shape[1]:
        raise ConfigError(
            f"score tables have {x.shape[1]} and {y.shape[1]} tasks; they must "
            "have the same tasks in the same order"
        )
    rng = np.random.default_rng(seed)
    draws = statistic(resample(x, rng, repeats), resample(y, rng, repeats))
    return _interval(float(statistic(x, y)), draws, level)


def check_table(scores: ArrayLike) -> Table:
    """`scores` as a float64 [runs, tasks] table without holes."""
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ConfigError(
            f"a score table has shape {table.shape}; it must be [runs, tasks], neither "
            "of them zero"
        )
    holes = int(np.isnan(table).sum())
    if holes:
        raise IncompleteResults(
            f"{holes} of {table.size} scores are missing (NaN); leave out whole tasks, "
            "and say so, or run what is missing"
        )
    return table


def _interval(value: float, draws: Table, level: float) -> Interval:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level = {level!r}: must be a number > 0 and < 1")
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def _flatten(scores: Table) -> Table:
    return np.reshape(scores, (*scores.shape[:-2], -1))
