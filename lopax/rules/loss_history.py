"""A bounded memory of the training loss and the features a scheduler reads off it.

Ten moving averages with time constants from 10 steps to the horizon, and their
running minima (Metz et al., 2022, arXiv 2211.09760).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lopax.rules.ops import Array, Ops

NUM_DECAYS = 10
NUM_FEATURES = NUM_DECAYS - 1
_HUGE = 999999999999.0
_FAST, _SLOWEST = 1.0 - 2.0**-20, 1.0 - 2.0**-24
_SPACING = tuple(k / (NUM_DECAYS - 1) for k in range(NUM_DECAYS))


class LossHistory(NamedTuple):
    means: Any  # [10] moving averages, not bias-corrected
    minima: Any  # [10] smallest bias-corrected averages so far
    decays: Any  # [10] fixed by the horizon
    count: Any  # [] int32, losses seen


def init(xp: Ops, num_steps: Array) -> LossHistory:
    """Empty history for a run of `num_steps` [] int32."""
    zeros = xp.zeros((NUM_DECAYS,))
    return LossHistory(
        means=zeros,
        minima=zeros + _HUGE,
        decays=horizon_decays(xp, num_steps),
        count=xp.integer(0),
    )


def horizon_decays(xp: Ops, num_steps: Array) -> Array:
    """exp(-1 / h) [10] for time constants h log-spaced from 10 to the horizon.

    At most the float32 number below one (h = 1.7e7): an average whose decay rounds to
    one would never hear of a loss.
    """
    top = xp.log10(xp.maximum(num_steps * xp.constant(1.0), 1.0))
    spacing = xp.constant(_SPACING)
    powers = (1.0 - spacing) + top * spacing
    decays = xp.exp(-1.0 / xp.constant(10.0) ** powers)
    return xp.minimum(decays, _SLOWEST)


def retime(xp: Ops, history: LossHistory, old: Array, num_steps: Array) -> LossHistory:
    """The history for a run of `num_steps` that was begun as one of `old` steps.

    Averages get the time constants of the new length and keep their bias-corrected
    values. A history that was not built for `old` steps (as VeLO's
    `short_loss_history` has it) does not follow the horizon and stays as it is.
    """
    now, new = history.decays, horizon_decays(xp, num_steps)
    near = xp.abs(now - horizon_decays(xp, old)) < 1e-4
    follows = xp.all(near, axis=0)
    scale = _correction(xp, new, history.count) / _correction(xp, now, history.count)
    return history._replace(
        means=xp.where(follows, history.means * scale, history.means),
        decays=xp.where(follows, new, now),
    )


def retimed(xp: Ops, shared: Any, old: Array, num_steps: Array) -> Any:
    """`retime` of every history in (nested) named tuples; the rest stays."""
    if isinstance(shared, LossHistory):
        return retime(xp, shared, old, num_steps)
    if not hasattr(shared, "_fields"):
        return shared
    return type(shared)(*(retimed(xp, x, old, num_steps) for x in shared))


def update(xp: Ops, history: LossHistory, loss: Array) -> LossHistory:
    """History after one more (finite) loss [].

    A loss above twice the largest average counts as that, so one outlier moves the
    averages by a bounded amount.
    """
    d, count = history.decays, history.count
    # The published bound corrects the old averages as if the new loss were in them
    # (d^(count+1) instead of d^count); kept, because published weights were trained so.
    after = _correction(xp, d, count + 1)
    largest = xp.max(history.means / after, axis=0)
    bound = 2.0 * xp.abs(xp.where(count == 0, loss, largest))
    means = d * history.means + (1.0 - d) * xp.minimum(bound, loss)
    minima = xp.minimum(history.minima, means / after)
    return LossHistory(means, minima, d, count + 1)


def features(xp: Ops, history: LossHistory) -> Array:
    """[9] how each average stands between its minimum and the next slower average,
    in [-1, 1]; zero for the first two losses."""
    corrected = history.means / _correction(xp, history.decays, history.count)
    minima = history.minima[:-1]
    span = xp.maximum(corrected[1:] - minima, 1e-8)
    raw = xp.clip((corrected[:-1] - minima) / span - 1.0, -1.0, 1.0)
    return xp.where(history.count > 2, raw, 0.0)


def _correction(xp: Ops, decays: Array, count: Array) -> Array:
    """1 - d^t."""
    steps = xp.maximum(count * xp.constant(1.0), 1.0)
    # Where hardly a digit of 1 - d is left, 1 - d^t has none of its own: beyond what
    # any rule was trained with, so that published ones see what they were trained on.
    exact = -xp.expm1(steps * xp.log1p(decays - 1.0))
    return xp.where(decays > _FAST, exact, 1.0 - decays**steps)
