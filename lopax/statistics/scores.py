"""From training curves to scores, one number per run.

numpy only. Curves carry any leading axes and end in the step axis [..., T]; the loss
of step t is the one before update t, so it is the loss after t updates.

The two scores are those of Moudgil et al. (2025, arXiv 2501.12670): the final-loss
score, tuned Adam's final loss over this run's, and the speed-up, the run's length over
the number of updates it took to reach tuned Adam's final loss. Above one is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMOOTHING = 0.9
"""Decay of the moving average that curves are smoothed with before scoring."""

FITTED = 0.02
"""Share of the initial loss below which losses count by their logarithm."""


def smooth(curves: ArrayLike, decay: float = SMOOTHING) -> NDArray[np.float64]:
    """Bias-corrected exponential moving average along the last axis [..., T].

    A non-finite loss leaves the average as it was: one overflow that a run recovers
    from is counted (`Curves.nonfinite`) but does not wipe out the rest of its curve.
    Entries before the first finite loss are NaN.
    """
    curves = np.asarray(curves, np.float64)
    smoothed = np.full(curves.shape, np.nan)
    total = np.zeros(curves.shape[:-1])
    weight = np.zeros(curves.shape[:-1])
    for t in range(curves.shape[-1]):
        loss = curves[..., t]
        finite = np.isfinite(loss)
        total = np.where(finite, decay * total + (1.0 - decay) * loss, total)
        weight = np.where(finite, decay * weight + (1.0 - decay), weight)
        np.divide(total, weight, out=smoothed[..., t], where=weight > 0)
    return smoothed


def final_loss(
    curves: ArrayLike, diverged: ArrayLike | None = None, decay: float = SMOOTHING
) -> NDArray[np.float64]:
    """Last value of the smoothed curves [...]; infinity for a run that diverged.

    **Arguments:**

    - `curves`: [..., T] losses.
    - `diverged`: [...] bool; by default a run diverged if its last loss is not finite.
    """
    curves = np.asarray(curves, np.float64)
    last = smooth(curves, decay)[..., -1]
    gone = ~np.isfinite(curves[..., -1]) if diverged is None else np.asarray(diverged)
    return np.where(gone | np.isnan(last), np.inf, last)


def compressed(losses: ArrayLike, start: ArrayLike) -> NDArray[np.float64]:
    """Losses as they are scored: f / (1 + ln(f / loss)) below f, 2 % of the first.

    Between a loss of 1e-6 and one of 1e-9 there is no difference that anybody would
    call a factor of a thousand. The order of losses stays, and at f so does the slope.

    **Arguments:**

    - `losses`: [...], any numbers; those that are not positive stay as they are.
    - `start`: [...] the initial loss, broadcast against `losses`.
    """
    losses = np.asarray(losses, np.float64)
    floor = FITTED * np.asarray(start, np.float64)
    low = (losses > 0) & (losses < floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = floor / (1.0 + np.log(floor / np.where(low, losses, 1.0)))
    return np.where(low, shown, losses)


def final_loss_score(
    losses: ArrayLike, reference: ArrayLike, start: ArrayLike | None = None
) -> NDArray[np.float64]:
    """reference / loss: above one is better than the reference, zero is divergence.

    **Arguments:**

    - `losses`: [...] final losses; infinite for runs that diverged.
    - `reference`: [...] the reference's final loss, broadcast against `losses`.
    - `start`: [...] the initial loss; with it, losses are `compressed`.

    **Returns:** [...] scores >= 0. A ratio says nothing about losses that can reach
    zero or below, so where either one is not positive the score is NaN; whoever
    aggregates must leave that task out and say so.
    """
    losses, reference = np.broadcast_arrays(
        np.asarray(losses, np.float64), np.asarray(reference, np.float64)
    )
    if start is not None:
        losses, reference = compressed(losses, start), compressed(reference, start)
    scores = np.zeros(losses.shape)
    usable = (losses > 0) & np.isfinite(losses) & (reference > 0)
    np.divide(reference, losses, out=scores, where=usable)
    undefined = np.isnan(losses) | (losses <= 0) | ~(reference > 0)
    return np.where(undefined | ~np.isfinite(reference), np.nan, scores)


def steps_to_target(
    curves: ArrayLike, target: ArrayLike, decay: float = SMOOTHING
) -> NDArray[np.float64]:
    """Updates made until the smoothed loss is at or below `target`; inf if never.

    **Arguments:**

    - `curves`: [..., T] losses.
    - `target`: [...] broadcast against the leading axes; nobody reaches a target that
        is not finite.

    **Returns:** [...] float64, at least one (no optimizer is faster than one update).
    """
    smoothed = smooth(curves, decay)
    target = np.asarray(target, np.float64)[..., None]
    with np.errstate(invalid="ignore"):
        reached = (smoothed <= target) & np.isfinite(target)
    first = np.argmax(reached, axis=-1)
    return np.where(reached.any(axis=-1), np.maximum(first, 1), np.inf)


def speedup(
    curves: ArrayLike,
    target: ArrayLike,
    diverged: ArrayLike = False,
    decay: float = SMOOTHING,
) -> NDArray[np.float64]:
    """T / steps to target [...]; zero if the target is never reached.

    A run that reaches the target and diverges later counts as never: nobody could
    have used it at its full length.
    """
    steps = steps_to_target(curves, target, decay)
    length = np.asarray(curves).shape[-1]
    return np.where(np.asarray(diverged), 0.0, length / steps)
