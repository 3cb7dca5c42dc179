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

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf
from lopax._core.run import Run
from lopax._core.sizes import SizeBounds
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.blocks import moments, scheduler
from lopax.blocks.element_rule import ElementRule, check_backend, why_plain
from lopax.blocks.moments import Moments
from lopax.blocks.scheduler import SchedulerState
from lopax.nets import mlp
from lopax.rules import channels
from lopax.rules.element_net import Decays, ElementNet, Numbers, check_decays

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
    """"plain": the rule as written below. "fused": a kernel with the same arithmetic
    (CPU), an error if there is none. "auto": the kernel where there is one."""

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
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    reference: ClassVar[str] = "Moudgil et al., 2025, arXiv 2501.12670"
    param_like: ClassVar[tuple[str, ...]] = ("second",)

    def __init__(self, config: CeloConfig | None = None):
        self.config = config or CeloConfig()

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        k_rule, k_scheduler = jax.random.split(key)
        inputs = channels.count(channels.VELO)
        rule = mlp.init(k_rule, (inputs, c.hidden, c.hidden, 2))
        schedule = scheduler.init_theta(k_scheduler, c.lstm)
        if c.start != "random":
            schedule = scheduler.following(schedule, scheduler.falling(*FALLING))
        if c.start == "adam":
            rule = _adam_like(rule)
        return {"rule": rule, "scheduler": schedule}

    def init_shared(
        self, theta: Theta, num_steps: Count, num_tensors: int
    ) -> SchedulerState:
        del num_tensors
        return scheduler.init(theta["scheduler"], num_steps)

    def init_tensor(self, theta: Theta, param: Array) -> Moments:
        del theta
        return moments.init(param)

    def group_key(self, leaf: Leaf) -> str | None:
        # A call to the kernel costs little however many there are.
        return None if why_plain(self.config, leaf.shape) is None else ""

    def advance(
        self,
        theta: Theta,
        shared: SchedulerState,
        run: Run,
        summaries: Any,
    ) -> tuple[SchedulerState, Scalar, Scalar]:
        del summaries
        c = self.config
        if c.phase == 1:
            scale = jnp.asarray(c.step_mult, jnp.float32)
            return shared, scale, scale
        shared, multiplier = scheduler.advance(
            theta["scheduler"], shared, run.loss, run.fraction
        )
        scale = c.step_mult * multiplier * scheduler.beyond(shared, c.trained_horizon)
        return shared, scale, scale

    def numbers(
        self, theta: Theta, context: Scalar, leaf: Leaf, param: Array
    ) -> Numbers:
        del leaf, param
        return Numbers(theta["rule"], self.config.decays, context)

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        w1 = arrays.get("ff_mod_stack/~/w1")
        if w1 is None or w1.shape[0] != 1:
            return arrays  # a bank of MLPs: another architecture; shapes are reported
        bank = mlp.from_published(arrays, "ff_mod_stack/~/", len(channels.VELO), (0, 1))
        found = {f"rule/{k}": v[0] for k, v in bank.items()}
        schedule = scheduler.from_published(arrays)
        return found | {f"scheduler/{k}": v for k, v in schedule.items()}


def _adam_like(rule: Theta) -> Theta:
    """A rule whose direction is the momentum (decay 0.9) over the root second moment.

    relu(x) - relu(-x) = x carries one channel through both hidden layers on two
    units; the other units keep small random weights, so that every weight still
    receives a gradient. The direction has unit root mean square; the gain makes a
    step of about one per cent of the tensor's.
    """
    channel, gain = channels.places(["adam"])[0], 10.0
    w0 = 0.1 * rule["w0"]
    w0 = w0.at[:, :2].set(0.0).at[channel, 0].set(1.0).at[channel, 1].set(-1.0)
    w1 = 0.1 * rule["w1"]
    w1 = w1.at[:2, :2].set(jnp.eye(2, dtype=jnp.float32)).at[2:, :2].set(0.0)
    w2 = 0.1 * rule["w2"]
    w2 = w2.at[:, 0].set(0.0).at[0, 0].set(gain).at[1, 0].set(-gain)
    return {**rule, "w0": w0, "w1": w1, "w2": w2}
