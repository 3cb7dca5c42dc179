"""What a gradient estimator is: theta in, an estimate of the meta-gradient out."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from lopax._core.types import Key, Scalar, Theta


class EstimateInfo(NamedTuple):
    """What one estimate reports beside the gradient."""

    loss: Scalar  # mean normalised meta-loss over the valid steps of this window
    inner_steps: Scalar  # inner updates made, all trajectories together
    finished: Scalar  # inner problems that came to their end in this window
    diverged: Scalar  # inner steps whose loss was not finite


class Estimator(abc.ABC):
    """An algorithm that estimates d(meta-loss)/d(theta) from inner training runs.

    Estimators are pure: `step` maps (theta, state, key) to an estimate and the next
    state, compiles to one program, and can be sharded along the particle axis, which
    is the first axis of every array in the state.
    """

    uses_backprop: bool = False

    @abc.abstractmethod
    def init(self, theta: Theta, key: Key) -> Any:
        """State before the first window (started inner problems, accumulators)."""

    @abc.abstractmethod
    def step(
        self, theta: Theta, state: Any, key: Key
    ) -> tuple[Theta, Any, EstimateInfo]:
        """Gradient estimate (theta's structure, zero on frozen leaves), next state."""
