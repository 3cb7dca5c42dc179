"""The training loss on a scale that is the same for all tasks: a running z-score."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopax._core.types import Count, Scalar


class LossMoments(NamedTuple):
    mean: Scalar  # [] moving average, not bias-corrected
    variance: Scalar  # [] the same, of squared distances to the updated mean
    count: Count  # [] int32, losses seen  # pyright: ignore[reportIncompatibleMethodOverride]


def init() -> LossMoments:
    """No losses seen."""
    zero = jnp.zeros((), jnp.float32)
    return LossMoments(zero, zero, jnp.zeros((), jnp.int32))


def update(moments: LossMoments, loss: Scalar, decay: float) -> LossMoments:
    """After one more (finite) loss; beyond +-1e15 its square would overflow."""
    loss = jnp.clip(loss, -1e15, 1e15)
    mean = decay * moments.mean + (1.0 - decay) * loss
    spread = jnp.square(mean - loss)
    variance = decay * moments.variance + (1.0 - decay) * spread
    return LossMoments(mean, variance, moments.count + 1)


def corrected_mean(moments: LossMoments, decay: float) -> Scalar:
    """[] the bias-corrected average; 0 before the first loss."""
    return moments.mean * _correction(moments, decay)


def score(moments: LossMoments, loss: Scalar, decay: float) -> Scalar:
    """[] distance of `loss` from the average in standard deviations, within +-5."""
    correction = _correction(moments, decay)
    scale = jax.lax.rsqrt(moments.variance * correction + 1e-8)
    return jnp.clip((loss - moments.mean * correction) * scale, -5.0, 5.0)


def _correction(moments: LossMoments, decay: float) -> Scalar:
    seen = jnp.maximum(moments.count, 1).astype(jnp.float32)
    return 1.0 / (1.0 - decay**seen)
