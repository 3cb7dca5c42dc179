"""The states of `lopax.optimizer`, apart, so that their readers need not be cyclic."""

from __future__ import annotations

from typing import Any, NamedTuple

from lopax._core.types import Count, Scalar, Updates


class Report(NamedTuple):
    """Diagnostics of the last step, kept in the state if asked for."""

    clipped: Count  # [] int32, gradient elements beyond the rule's bound
    update_rms: Any  # per tensor [] float32: the effective step size
    update_to_weight: Any  # per tensor [] float32: the same over the parameter's RMS


class OptimizerState(NamedTuple):
    """State of `lopax.optimizer`."""

    rule: Any  # the rule's own state
    count: Count  # [] int32, for schedules of lr_multiplier  # pyright: ignore[reportIncompatibleMethodOverride]
    step_scale: Scalar  # [] float32, the rule's step scale in the last step made
    in_a_row: Count  # [] int32, steps skipped since the last one made
    flaw: Count  # [] int32, which tensor made the last one so, as in `Info`
    idle: Count  # [] int32, of the first steps those whose gradients were all zero
    report: Any  # `Report` of the last step, or () if it was not asked for


class AccumulationState(NamedTuple):
    """State of `accumulate`."""

    inner: Any
    every: Count  # [] int32, calls per step of the inner transformation
    seen: Count  # [] int32, calls since its last step
    used: Count  # [] int32, how many of them entered the averages
    skipped: Count  # [] int32, calls with a non-finite gradient or loss, ever
    grads: Updates  # float32, mean of the gradients since the last step
    value: Scalar  # [] float32, mean of the losses
