"""Where a run is, as optimizers tell their rules."""

from __future__ import annotations

from typing import Any, NamedTuple


class Run(NamedTuple):
    """Everything about the run that is the same for all tensors, once a step.

    Arrays of either framework.
    """

    loss: Any  # [] float32, finite; None if the rule was not given one
    fraction: Any  # [] float32, steps before this one / num_steps, in [0, 1]
    updates: Any  # [] int32, updates made before this one, without skipped steps
    num_steps: Any  # [] int32, the horizon; 0 for rules without one
