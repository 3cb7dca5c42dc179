"""Is the difference more than noise, and how many seeds would settle it?

Two optimizers run with the same seed share the initial parameters and the batches,
so their runs are pairs. The test flips the signs of paired differences: it assumes no
distribution, only that under "no difference" the two names could be swapped. numpy
and the standard library only.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax._core.errors import ConfigError, IncompleteResults


class PairedTest(NamedTuple):
    """What a paired comparison on one suite found."""

    effect: float  # mean over tasks and seeds of the difference
    p_runs: float  # two-sided, seeds exchangeable: do these tasks tell them apart?
    p_tasks: float  # two-sided, tasks exchangeable: would other such tasks?
    wins: int  # tasks whose mean difference is positive
    tasks: int
    seeds: int
    seeds_needed: int | None  # for 80 % power at 5 %; None if no number would do


def paired_test(
    differences: ArrayLike, *, repeats: int = 10_000, seed: int = 0
) -> PairedTest:
    """Sign-flip tests on paired differences.

    **Arguments:**

    - `differences`: [seeds, tasks], first optimizer better where positive, on a scale
        on which tasks may be averaged: differences of scores.

    Raises `IncompleteResults` for a non-finite difference.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 2 or d.size == 0:
        raise ConfigError(
            f"differences has shape {d.shape}; it must be [seeds, tasks], neither zero"
        )
    if not np.isfinite(d).all():
        raise IncompleteResults(
            f"{int((~np.isfinite(d)).sum())} of {d.size} paired differences are not "
            "finite; leave out whole tasks, and say so"
        )
    rng = np.random.default_rng(seed)
    by_task = d.mean(axis=0)
    return PairedTest(
        effect=float(d.mean()),
        p_runs=sign_flip(d.ravel(), rng, repeats),
        p_tasks=sign_flip(by_task, rng, repeats),
        wins=int((by_task > 0).sum()),
        tasks=d.shape[1],
        seeds=d.shape[0],
        seeds_needed=seeds_needed(d),
    )


def sign_flip(
    values: NDArray[np.float64], rng: np.random.Generator, repeats: int = 10_000
) -> float:
    """Two-sided p-value of the mean of `values` [n] under random signs.

    All 2^n sign patterns if they are no more than `repeats` (then the value is exact),
    otherwise `repeats` random ones, counting the observed one.
    """
    n = values.size
    observed = abs(values.sum())
    slack = 1e-12 * max(1.0, np.abs(values).sum())
    if n < 40 and 2**n <= repeats:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        sums = np.abs((1 - 2 * patterns) @ values)
        return float((sums >= observed - slack).mean())
    hits = 1
    for start in range(0, repeats, 1_000):
        count = min(1_000, repeats - start)
        signs = 1 - 2 * rng.integers(0, 2, size=(count, n))
        hits += int((np.abs(signs @ values) >= observed - slack).sum())
    return hits / (repeats + 1)


def seeds_needed(
    differences: ArrayLike, *, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Seeds per task at which the observed mean difference would stand out.

    Normal approximation for the mean over a fixed set of tasks: n is the smallest
    number with (z_(1 - alpha/2) + z_power) s / sqrt(n) <= |effect|, s^2 the variance
    over seeds of the mean over tasks. At least 2.

    **Arguments:**

    - `differences`: [seeds, tasks].

    **Returns:** None if there is only one seed, no difference, or more than a million
    seeds would be needed.
    """
    d = np.asarray(differences, np.float64)
    if d.shape[0] < 2:
        return None
    effect = abs(d.mean())
    spread = math.sqrt(d.var(axis=0, ddof=1).sum()) / d.shape[1]
    if effect == 0.0:
        return None
    z = NormalDist().inv_cdf
    ratio = (z(1.0 - alpha / 2.0) + z(power)) * spread / effect
    if ratio > 1e3:
        return None
    return max(2, math.ceil(ratio * ratio))
