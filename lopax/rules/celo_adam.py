"""Celo-Adam: Adam whose learning rate is a learned schedule.

Moudgil et al. (2025, arXiv 2501.12670), the variant with a hand-made direction: the
scheduler of Celo multiplies a base learning rate of 1e-3 (so the rate is
1e-4 exp(output)), the direction is bias-corrected Adam (b1 0.9, b2 0.999).

Needs the loss and the horizon. 35,649 meta-parameters (published tree: 36,865, with
an unused linear layer).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax.rules import form, moments, published, scheduler
from lopax.rules.form import Advance, Rows, StepContext, Steps
from lopax.rules.moments import AdamMoments
from lopax.rules.ops import Array, Draw, Ops
from lopax.rules.scheduler import SchedulerState

STARTS = ("random", "falling")
FALLING = (5.0, 0.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloAdamConfig:
    """Settings of `CeloAdam`; the defaults fit the published weights."""

    lstm: int = 64
    b1: float = 0.9
    b2: float = 0.999
    step_mult: float = 1e-3
    start: str = "random"
    """What `init_theta` begins with: "random" (as published) or "falling", a scheduler
    whose multiplier falls exponentially from 5 to 0.05."""

    def __post_init__(self) -> None:
        check_choice(self, "start", STARTS)
        check_range(self, "lstm", low=1)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "step_mult", above=0.0)


class CeloAdam(form.Rule):
    """See the module docstring."""

    name: ClassVar[str] = "celo_adam"
    reference: ClassVar[str] = "Moudgil et al., 2025, arXiv 2501.12670"
    sees_tensors: ClassVar[bool] = False
    config_class: ClassVar[type] = CeloAdamConfig
    needs_loss = True
    needs_horizon = True
    config: CeloAdamConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        size = self.config.lstm
        theta = scheduler.init_theta(draw, key, size)
        if self.config.start == "falling":
            curve = scheduler.falling(*FALLING)
            theta = scheduler.fit_to_schedule(draw, theta, size, curve)
        return {"scheduler": theta}

    def keeps(self, role: str) -> AdamMoments:
        return moments.ADAM_KEEPS

    def init_shared(
        self, xp: Ops, theta: Any, num_steps: Array, starts: Array
    ) -> SchedulerState:
        return scheduler.init(xp, theta["scheduler"], num_steps)

    def advance(
        self, xp: Ops, theta: Any, shared: SchedulerState, run: Run, rows: Rows
    ) -> Advance:
        shared, multiplier = scheduler.advance(xp, theta["scheduler"], shared, run)
        return Advance(shared, self.config.step_mult * multiplier)

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
        c, t = self.config, at.place.column(state.step + 1.0)
        state = moments.adam(xp, state, grad, c.b1, c.b2)
        size = -at.scale / (1.0 - c.b1**t)
        corrected = state.second / (1.0 - c.b2**t)
        return xp.adam(size, state.momentum, corrected, 1e-10, 1e-8), state

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if "rnn_params/step_size/w" not in arrays:
            return arrays
        return published.under("scheduler", published.scheduler(arrays))
