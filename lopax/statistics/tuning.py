"""Choosing a learning rate for a baseline: one stated rule, the same for all.

The best rate is the one with the lowest final smoothed training loss of the mean
curve over seeds, as published (Moudgil et al., 2025, arXiv 2501.12670). It is chosen
on the very runs that are reported, which flatters the tuned baselines a little and
never the untuned optimizers. numpy only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax.statistics.scores import SMOOTHING, smooth


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The outcome of a sweep over L learning rates."""

    index: int  # of the best learning rate
    final: NDArray[np.float64]  # [L] final smoothed loss of the mean curve; inf: gone
    at_edge: bool  # the best rate is the smallest or the largest: widen the grid
    all_diverged: bool


def tune(
    train: ArrayLike,
    diverged: ArrayLike,
    decay: float = SMOOTHING,
    *,
    read_out: ArrayLike | None = None,
) -> Tuned:
    """Picks the best of L learning rates.

    **Arguments:**

    - `train`: [S, L, T] training losses.
    - `diverged`: [S, L] bool; a rate at which any seed diverged cannot win.
    - `read_out`: [S, L] final training losses in place of the curves' ends.

    Ties go to the smaller index, hence to the smaller rate of an ascending grid.
    """
    if read_out is not None:
        train = np.asarray(read_out)[..., None]
    train = np.asarray(train, np.float64)
    gone = np.asarray(diverged).any(axis=0)
    # errstate: seeds that overflowed make the mean inf or NaN, which is the answer
    with np.errstate(invalid="ignore", over="ignore"):
        mean_curve = train.mean(axis=0)
    last = smooth(mean_curve, decay)[:, -1]
    final = np.where(gone | np.isnan(last), np.inf, last)
    best = int(np.argmin(final))
    rates = len(final)
    return Tuned(
        index=best,
        final=final,
        at_edge=rates > 1 and best in (0, rates - 1),
        all_diverged=bool(np.isinf(final).all()),
    )
