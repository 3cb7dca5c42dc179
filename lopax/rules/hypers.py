"""Meta-learned hyperparameters of hand-made rules: the simplest learned optimizers.

Three rules with a handful of meta-parameters each. They are the sanity check of any
meta-training (their optimum is known by a grid search) and strong baselines on tasks
like those they were trained on.

- `learned_sgd`: heavy-ball momentum; learning rate and momentum (2).
- `learned_adam`: Adam with bias correction; learning rate, two decays, epsilon (4).
- `scheduled_adam`: the same times a schedule, piecewise linear in the logarithm between
  equally spaced knots over the run (4 + knots, 12 by default). Needs the horizon.

None needs the loss. Rates are learned as logarithms and decays as log(1 - decay), so
that perturbations of one size suit all; names follow the library of Metz et al. (2022,
arXiv 2203.11860), whose trees load as they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import form, moments, time_features
from lopax.rules.form import EACH, Advance, Rows, StepContext, Steps
from lopax.rules.moments import AdamMoments
from lopax.rules.ops import Array, Draw, Ops

REFERENCE = "Metz et al., 2022, arXiv 2203.11860"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSGDConfig:
    """Where the meta-parameters of `LearnedSGD` start."""

    learning_rate: float = 1e-2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "momentum", low=0.0, below=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedAdamConfig:
    """Where the meta-parameters of `LearnedAdam` start."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "eps", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledAdamConfig(LearnedAdamConfig):
    """Where the meta-parameters of `ScheduledAdam` start: a constant schedule."""

    knots: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "knots", low=2)


class SGDState(NamedTuple):
    momentum: Any  # [*s]


class LearnedSGD(form.Rule):
    """p <- p - lr m with m <- momentum m + g."""

    name: ClassVar[str] = "learned_sgd"
    reference: ClassVar[str] = REFERENCE
    sees_tensors: ClassVar[bool] = False
    config_class: ClassVar[type] = LearnedSGDConfig
    config: LearnedSGDConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        return {
            "log_lr": draw.full((), math.log(c.learning_rate)),
            "one_minus_momentum": draw.full((), math.log(1.0 - c.momentum)),
        }

    def keeps(self, role: str) -> SGDState:
        return SGDState(EACH)

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        return Advance(shared, xp.exp(theta["log_lr"]))

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: SGDState,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        momentum = _decay(xp, theta["one_minus_momentum"]) * state.momentum + grad
        return -at.scale * momentum, SGDState(momentum)


class _AdamRule(form.Rule):
    """Adam from meta-parameters; the variants say how the rate moves with time."""

    reference: ClassVar[str] = REFERENCE
    sees_tensors: ClassVar[bool] = False
    config: LearnedAdamConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        return {
            "log_lr": draw.full((), math.log(c.learning_rate)),
            "one_minus_beta1": draw.full((), math.log(1.0 - c.b1)),
            "one_minus_beta2": draw.full((), math.log(1.0 - c.b2)),
            "log_epsilon": draw.full((), math.log(c.eps)),
        }

    def keeps(self, role: str) -> AdamMoments:
        return moments.ADAM_KEEPS

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        return Advance(shared, xp.exp(self._log_rate(xp, theta, run)))

    def _log_rate(self, xp: Ops, theta: Any, run: Run) -> Array:
        return theta["log_lr"]

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: AdamMoments,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        b1 = _decay(xp, theta["one_minus_beta1"])
        b2 = _decay(xp, theta["one_minus_beta2"])
        state = moments.adam(xp, state, grad, b1, b2)
        steps = state.step + 1.0
        size = -at.scale / at.place.column(1.0 - b1**steps)
        corrected = state.second / at.place.column(1.0 - b2**steps)
        # The floor under the root only keeps its derivative finite at zero.
        epsilon = xp.exp(theta["log_epsilon"])
        return xp.adam(size, state.momentum, corrected, 1e-30, epsilon), state


class LearnedAdam(_AdamRule):
    """See the module docstring."""

    name: ClassVar[str] = "learned_adam"
    config_class: ClassVar[type] = LearnedAdamConfig


class ScheduledAdam(_AdamRule):
    """See the module docstring. Past the horizon the last knot's rate goes on."""

    name: ClassVar[str] = "scheduled_adam"
    config_class: ClassVar[type] = ScheduledAdamConfig
    needs_horizon = True
    config: ScheduledAdamConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def init_theta(self, draw: Draw, key: Any) -> Any:
        knots = draw.full((self.config.knots,))
        return {**super().init_theta(draw, key), "log_schedule": knots}

    def _log_rate(self, xp: Ops, theta: Any, run: Run) -> Array:
        schedule = time_features.at_knots(xp, theta["log_schedule"], run.fraction)
        return theta["log_lr"] + schedule


def _decay(xp: Ops, log_one_minus: Array) -> Array:
    """A decay in [0, 1) from log(1 - decay)."""
    return 1.0 - xp.exp(xp.clip(log_one_minus, -13.0, 0.0))
