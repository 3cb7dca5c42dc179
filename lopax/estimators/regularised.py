"""A back-propagating estimator whose meta-loss also asks for flat minima.

Yang et al. (2023, arXiv 2302.11085); the measures are in `lopax.estimators.flatness`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lopax._core.errors import ConfigError
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Theta
from lopax.estimators.backprop import FullGradient, TruncatedBackprop
from lopax.estimators.flatness import Flatness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularised(Estimator):
    """`base` with the penalty's gradient added at every inner step.

    The penalty acts through its gradient alone: the reported meta-loss stays that of
    the tasks. Raises `ConfigError` for a base that does not back-propagate, or not
    through every inner step.
    """

    base: TruncatedBackprop | FullGradient
    flatness: Flatness

    uses_backprop = True

    def __post_init__(self) -> None:
        check_differentiable(type(self.base), self.flatness)
        self.regularised()

    def regularised(self) -> TruncatedBackprop | FullGradient:
        """The base whose inner steps carry the penalty."""
        unroller = dataclasses.replace(self.base.unroller, flatness=self.flatness)
        return dataclasses.replace(self.base, unroller=unroller)

    def init(self, theta: Theta, key: Key) -> Any:
        return self.regularised().init(theta, key)

    def step(
        self, theta: Theta, state: Any, key: Key
    ) -> tuple[Theta, Any, EstimateInfo]:
        return self.regularised().step(theta, state, key)


def check_differentiable(kind: type[Estimator], flatness: Flatness) -> None:
    """Raises `ConfigError` unless the estimator differentiates inner training."""
    if not kind.uses_backprop:
        raise ConfigError(
            f"flatness {flatness.measure!r} with {kind.__name__}: the penalty acts "
            "through the derivative of the Hessian along the inner run, and a "
            "gradient-free estimator differentiates nothing, so that it would have no "
            "effect; use truncated_backprop or full_gradient"
        )
