"""A bounded memory of the training loss and the features a scheduler reads off it.

Ten moving averages with time constants from 10 steps to the horizon, and their
running minima (Metz et al., 2022, arXiv 2211.09760).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Count, Scalar

NUM_DECAYS = 10
NUM_FEATURES = NUM_DECAYS - 1
_HUGE = 999999999999.0
_FAST, _SLOWEST = 1.0 - 2.0**-20, 1.0 - 2.0**-24


class LossHistory(NamedTuple):
    means: Float[Array, "10"]  # moving averages, not bias-corrected
    minima: Float[Array, "10"]  # smallest bias-corrected averages so far
    decays: Float[Array, "10"]  # fixed by the horizon
    iteration: Count  # [] int32, losses seen


def init(num_steps: Count) -> LossHistory:
    """Empty history for a run of `num_steps` (may be traced)."""
    return LossHistory(
        means=jnp.zeros((NUM_DECAYS,), jnp.float32),
        minima=jnp.full((NUM_DECAYS,), _HUGE, jnp.float32),
        decays=horizon_decays(num_steps),
        iteration=jnp.zeros((), jnp.int32),
    )


def horizon_decays(num_steps: Count) -> Float[Array, "10"]:
    """exp(-1 / h) for time constants h log-spaced from 10 to the horizon.

    At most the float32 number below one (h = 1.7e7): an average whose decay rounds to
    one would never hear of a loss.
    """
    top = jnp.log10(jnp.maximum(jnp.asarray(num_steps, jnp.float32), 1.0))
    decays = jnp.exp(
        -1.0 / jnp.power(10.0, jnp.linspace(1.0, top, NUM_DECAYS, dtype=jnp.float32))
    )
    return jnp.minimum(decays, _SLOWEST)


def horizon(history: LossHistory) -> Scalar:
    """The number of steps [] that the history was built for, read off its slowest
    average: exact to 4,000, to 3 % at a million (float32), at most 1.7e7."""
    rate = -jnp.log(history.decays[-1])
    return jnp.round(1.0 / jnp.maximum(rate, 2.0**-25))


def retime(history: LossHistory, old: Count, num_steps: Count) -> LossHistory:
    """The history for a run of `num_steps` that was begun as one of `old` steps.

    Averages get the time constants of the new length and keep their bias-corrected
    values. A history that was not built for `old` steps (as VeLO's
    `short_loss_history` has it) does not follow the horizon and stays as it is.
    """
    it, new = history.iteration, horizon_decays(num_steps)
    follows = jnp.all(jnp.abs(history.decays - horizon_decays(old)) < 1e-4)
    scale = _correction(new, it) / _correction(history.decays, it)
    moved = LossHistory(history.means * scale, history.minima, new, it)
    return jax.tree.map(lambda a, b: jnp.where(follows, a, b), moved, history)


def update(history: LossHistory, loss: Scalar) -> LossHistory:
    """History after one more (finite) loss.

    A loss above twice the largest average counts as that, so one outlier moves the
    averages by a bounded amount.
    """
    d, it = history.decays, history.iteration
    # The published bound corrects the old averages as if the new loss were in them
    # (d^(it+1) instead of d^it); kept, because published weights were trained so.
    after = _correction(d, it + 1)
    largest = jnp.max(history.means / after)
    bound = 2.0 * jnp.abs(jnp.where(it == 0, loss, largest))
    means = d * history.means + (1.0 - d) * jnp.minimum(bound, loss)
    corrected = means / after
    return LossHistory(means, jnp.minimum(history.minima, corrected), d, it + 1)


def features(history: LossHistory) -> Float[Array, "9"]:
    """How each average stands between its minimum and the next slower average,
    in [-1, 1]; zero for the first two losses."""
    corrected = history.means / _correction(history.decays, history.iteration)
    minima = history.minima[:-1]
    span = jnp.maximum(1e-8, corrected[1:] - minima)
    raw = jnp.clip((corrected[:-1] - minima) / span - 1.0, -1.0, 1.0)
    return jnp.where(history.iteration <= 2, 0.0, raw)


def _correction(decays: Array, iteration: Count) -> Array:
    steps = jnp.maximum(iteration, 1).astype(jnp.float32)
    # Where hardly a digit of 1 - d is left, 1 - d^t has none of its own: beyond what
    # any rule was trained with, so that published ones see what they were trained on.
    exact = -jnp.expm1(steps * jnp.log1p(decays - 1.0))
    return jnp.where(decays > _FAST, exact, 1.0 - jnp.power(decays, steps))
