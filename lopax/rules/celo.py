"""Celo: a learned per-element rule times a learned schedule.

Moudgil, Knyazev, Lajoie and Belilovsky, "Learning Versatile Optimizers on a Compute
Diet" (2025, arXiv 2501.12670). The settings are those of the released weights, not
the published class defaults: one MLP (30 -> 4 -> 4 -> 2) and 64 LSTM units.

Needs the loss and the horizon; sees every parameter, of any shape. 35,803
meta-parameters: 154 in the rule, 35,649 in the scheduler. The published tree has
37,089; the difference (an unused linear layer, an unused control head and an unused
third output) does not act on the result and is neither stored nor perturbed here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax._core.sizes import SizeBounds
from lopax.rules import channels, layers, moments, published, scheduler
from lopax.rules.element_net import Decays, ElementNet, Numbers, check_decays
from lopax.rules.element_rule import ElementRule, check_backend
from lopax.rules.form import Advance, Rows
from lopax.rules.ops import Array, Arrays, Draw, Ops
from lopax.rules.scheduler import SchedulerState

STARTS = ("random", "falling", "adam")
FALLING = (3.0, 0.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloConfig:
    """Settings of `Celo`; the defaults fit the published and the bundled weights."""

    phase: int = 2
    """1: the per-element rule alone, as meta-trained first. 2: times the scheduler."""
    hidden: int = 4
    """Width of the MLP's two hidden layers."""
    lstm: int = 64
    """Units of the scheduler's LSTM."""
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    second_decay: float = 0.999
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    step_mult: float = 1e-3
    """Step for an output of one, relative to the tensor's size: its root mean square,
    within the bounds below."""
    exp_mult: float = 1e-3
    """Scale of the log-magnitude output."""
    size_floor: float = 0.0
    """A matrix counts as at least this times 1 / sqrt(fan-in), so that one that starts
    at zero can leave it. 0, as published and in meta-training (its tasks are rescaled):
    no floor. The bundled weights bring `sizes.FLOOR`, and the other two bounds."""
    vector_floor: float = 0.0
    """A vector or scalar counts as at least this large."""
    size_limit: float | None = None
    """A tensor counts as at most this times its usual size, 1 / sqrt(fan-in) or for
    vectors 1, so that steps cannot grow exponentially. None: no limit."""
    trained_horizon: int | None = None
    """Longest run of meta-training. The steps of a longer one are multiplied by
    sqrt(trained_horizon / num_steps), without which it diverges. None: never, as
    published. Not in phase 1."""
    start: str = "random"
    """What `init_theta` begins with: "random" (as published); "falling", a random MLP
    and a scheduler that falls exponentially from 3 to 0.05; or "adam", that scheduler
    and an MLP that passes on one Adam-like direction, plus noise in the other units."""
    backend: str = "auto"
    """How JAX steps: "plain", the rule as written; "fused", a kernel with the same
    arithmetic (CPU), an error if there is none; "auto", the kernel where there is one.
    torch's optimizers have an argument of that name."""

    def __post_init__(self) -> None:
        check_choice(self, "start", STARTS)
        check_backend(self)
        check_range(self, "phase", low=1, high=2)
        check_range(self, "hidden", low=2)
        check_range(self, "lstm", low=1)
        check_range(self, "second_decay", low=0.0, below=1.0)
        check_decays(self, "momentum_decays", "factored_decays")
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_range(self, "size_floor", low=0.0)
        check_range(self, "vector_floor", low=0.0)
        if self.size_limit is not None:
            check_range(self, "size_limit", above=0.0)
        if self.trained_horizon is not None:
            check_range(self, "trained_horizon", low=1)

    @property
    def bounds(self) -> SizeBounds:
        return SizeBounds.to(self.size_floor, self.vector_floor, self.size_limit)

    @property
    def element_net(self) -> ElementNet:
        return ElementNet(self.hidden, exp_mult=self.exp_mult, bounds=self.bounds)

    @property
    def decays(self) -> Decays:
        return Decays(self.momentum_decays, (self.second_decay,), self.factored_decays)


class Celo(ElementRule):
    """See the module docstring. Example: `lopax.optimizer("celo", num_steps=2_000)`."""

    name: ClassVar[str] = "celo"
    reference: ClassVar[str] = "Moudgil et al., 2025, arXiv 2501.12670"
    config_class: ClassVar[type] = CeloConfig
    needs_loss = True
    needs_horizon = True
    config: CeloConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        k_rule, k_scheduler = draw.split(key, 2)
        inputs = channels.count(channels.VELO)
        rule = layers.mlp_init(draw, k_rule, (inputs, c.hidden, c.hidden, 2))
        schedule = scheduler.init_theta(draw, k_scheduler, c.lstm)
        if c.start != "random":
            curve = scheduler.falling(*FALLING)
            schedule = scheduler.fit_to_schedule(draw, schedule, c.lstm, curve)
        if c.start == "adam":
            rule = _adam_like(draw, rule, c.hidden)
        return {"rule": rule, "scheduler": schedule}

    def init_shared(
        self, xp: Ops, theta: Any, num_steps: Array, starts: Array
    ) -> SchedulerState:
        return scheduler.init(xp, theta["scheduler"], num_steps)

    def advance(
        self, xp: Ops, theta: Any, shared: SchedulerState, run: Run, rows: Rows
    ) -> Advance:
        c = self.config
        if c.phase == 1:
            return Advance(shared, xp.constant(c.step_mult))
        shared, multiplier = scheduler.advance(xp, theta["scheduler"], shared, run)
        longer = scheduler.horizon_scale(xp, run.num_steps, c.trained_horizon)
        return Advance(shared, c.step_mult * multiplier * longer)

    def numbers(
        self, xp: Ops, theta: Any, scale: Array, told: Arrays, common: Arrays
    ) -> Numbers:
        return Numbers(theta["rule"], moments.fixed(xp, self.config.decays), scale)

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        w1 = arrays.get(f"{published.BANK}w1")
        if w1 is None or w1.shape[0] != 1:
            return arrays  # a bank of MLPs: another architecture; shapes are reported
        bank = published.mlp(arrays, published.BANK, (0, 1))
        rule = published.under("rule", {k: v[0] for k, v in bank.items()})
        return rule | published.under("scheduler", published.scheduler(arrays))


def _adam_like(draw: Draw, rule: dict[str, Any], hidden: int) -> dict[str, Any]:
    """A rule whose direction is the momentum (decay 0.9) over the root second moment.

    relu(x) - relu(-x) = x carries one channel through both hidden layers on two
    units; the other units keep small random weights, so that every weight still
    receives a gradient. The direction has unit root mean square; the gain makes a
    step of about one per cent of the tensor's.
    """
    channel, gain = channels.places(["adam"])[0], 10.0
    others = 0.1 * (np.arange(hidden) >= 2)
    w0 = np.zeros((channels.count(channels.VELO), hidden))
    w0[channel, :2] = 1.0, -1.0
    w2 = np.zeros((hidden, 2))
    w2[:2, 0] = gain, -gain
    return {
        **rule,
        "w0": draw.edit(rule["w0"], others, w0),
        "w1": draw.edit(rule["w1"], others, np.eye(hidden, 2) @ np.eye(2, hidden)),
        "w2": draw.edit(rule["w2"], np.array([0.0, 0.1]), w2),
    }
