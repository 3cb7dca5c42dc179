"""Distributions over runs: performance profiles and time-to-target profiles.

A single aggregate hides whether an optimizer is a little better everywhere or much
better somewhere; a profile shows the whole distribution. numpy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax._core.errors import ConfigError
from lopax.statistics.aggregate import check_table, resample


class Profile(NamedTuple):
    """Share of runs at or above each threshold, with a pointwise bootstrap band."""

    thresholds: NDArray[np.float64]  # [K]
    share: NDArray[np.float64]  # [K] in [0, 1], falling
    low: NDArray[np.float64]  # [K]
    high: NDArray[np.float64]  # [K]


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    repeats: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> Profile:
    """The share of runs whose score is above each threshold.

    **Arguments:**

    - `scores`: [runs, tasks] without NaN.
    - `thresholds`: [K].

    Source: score distributions of Agarwal et al. (2021, arXiv 2108.13264), which are
    the run-level form of Dolan and More's performance profiles (2002).
    """
    table = check_table(scores)
    thresholds = np.asarray(thresholds, np.float64)

    def share(tables: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([(tables > t).mean(axis=(-2, -1)) for t in thresholds], axis=-1)

    draws = share(resample(table, np.random.default_rng(seed), repeats))
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return Profile(thresholds, share(table), low, high)


def time_profile(
    steps: ArrayLike, factors: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each optimizer, the share of runs within a factor of the fastest optimizer.

    Dolan and More (2002), as AlgoPerf uses them: the height at factor one says how
    often an optimizer is the fastest, the height at the right how often it arrives at
    all.

    **Arguments:**

    - `steps`: [optimizers, runs, tasks] updates needed to reach the target; inf if
        never.
    - `factors`: [K] >= 1.

    **Returns:** `factors` [K] and shares [optimizers, K]. Runs that no optimizer
    finished count against all of them.
    """
    steps = np.asarray(steps, np.float64)
    factors = np.asarray(factors, np.float64)
    if steps.ndim != 3:
        raise ConfigError(
            f"steps has shape {steps.shape}; it must be [optimizers, runs, tasks]"
        )
    best = steps.min(axis=0, keepdims=True)
    ratio = np.full(steps.shape, np.inf)
    np.divide(steps, best, out=ratio, where=np.isfinite(steps))
    within = ratio[..., None] <= factors * (1.0 + 1e-12)
    return factors, within.mean(axis=(1, 2))


def score_thresholds(scores: ArrayLike, count: int = 81) -> NDArray[np.float64]:
    """[count] thresholds from 0 to just beyond the 97.5 % quantile, at least 1.5."""
    top = float(np.quantile(np.asarray(scores, np.float64), 0.975))
    return np.linspace(0.0, max(1.5, 1.1 * top), count)
