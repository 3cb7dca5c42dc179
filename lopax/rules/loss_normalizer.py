"""The training loss on a scale that is the same for all tasks: a running z-score."""

from __future__ import annotations

from typing import Any, NamedTuple

from lopax.rules.ops import Array, Ops


class LossMoments(NamedTuple):
    mean: Any  # [] moving average, not bias-corrected
    variance: Any  # [] the same, of squared distances to the updated mean
    count: Any  # [] float32, losses seen


def init(xp: Ops) -> LossMoments:
    """No losses seen."""
    return LossMoments(xp.zeros(()), xp.zeros(()), xp.zeros(()))


def update(xp: Ops, moments: LossMoments, loss: Array, decay: float) -> LossMoments:
    """After one more (finite) loss; beyond +-1e15 its square would overflow."""
    loss = xp.clip(loss, -1e15, 1e15)
    mean = decay * moments.mean + (1.0 - decay) * loss
    spread = xp.square(mean - loss)
    variance = decay * moments.variance + (1.0 - decay) * spread
    return LossMoments(mean, variance, moments.count + 1.0)


def corrected_mean(xp: Ops, moments: LossMoments, decay: float) -> Array:
    """[] the bias-corrected average; 0 before the first loss."""
    return moments.mean * _correction(xp, moments, decay)


def score(xp: Ops, moments: LossMoments, loss: Array, decay: float) -> Array:
    """[] distance of `loss` from the average in standard deviations, within +-5."""
    correction = _correction(xp, moments, decay)
    scale = xp.rsqrt(moments.variance * correction + 1e-8)
    return xp.clip((loss - moments.mean * correction) * scale, -5.0, 5.0)


def _correction(xp: Ops, moments: LossMoments, decay: float) -> Array:
    seen = xp.maximum(moments.count, 1.0)
    return 1.0 / (1.0 - xp.constant(decay) ** seen)
