"""Optim4RL and two simpler recurrent rules, for optimising reinforcement learners.

Lan, Mahmood, Yan and Xu, "Learning to Optimize for Reinforcement Learning" (2023, arXiv
2302.01470). Every element of every tensor runs its own copy of one or two small GRUs on
its own gradient g, all sharing weights:

- `optim4rl`: step = -lr m / sqrt(v + 1e-8), where m = sign(g) exp(o1) is a magnitude
  from a GRU over g with the gradient's own sign, and v = exp(o2) one from a GRU over
  g^2: Adam's form, with learned moments (514 meta-parameters).
- `linear_optim`: the ablation without that form, step = -lr (exp(o1) g + exp(o2) o3)
  with three outputs of one GRU (275).
- `l2lgd2`: one learned rate per element, step = -lr exp(o) g, from the gradient's
  logarithm and sign (281); the earlier rule the paper compares with.

None needs the loss or the horizon, and none looks at the parameters' values. State of
64 B per parameter (`optim4rl`) or 32 B. Gradients are constants in the meta-gradient,
as in the paper. Where a gradient is exactly zero Optim4RL takes no step; anywhere
else, be it noise of 1e-20, it steps by lr exp(o1 - o2 / 2), so a fresh theta is nearly
sign descent. `lr` is part of the rule: use the value it was meta-trained with.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import form, layers
from lopax.rules.form import Advance, Keeps, Rows, StepContext, Steps
from lopax.rules.layers import Units
from lopax.rules.log_features import log_and_sign
from lopax.rules.ops import Array, Draw, Ops

REFERENCE = "Lan et al., 2023, arXiv 2302.01470"
LOG_RANGE = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElementGRUConfig:
    """Settings of the three rules; the defaults are the paper's for Catch."""

    units: int = 8
    lr: float = 1e-3
    """The step's scale; the paper sets it per environment (3e-4 to 0.03)."""
    clip: float = 1000.0
    """Gradients are clipped elementwise to +- this; the paper has 1 but for Catch."""

    def __post_init__(self) -> None:
        check_range(self, "units", low=1)
        check_range(self, "lr", above=0.0)
        check_range(self, "clip", above=0.0)


class _ElementGRURule(form.Rule):
    """What the three rules share: settings, and the number reported as step scale."""

    reference: ClassVar[str] = REFERENCE
    sees_tensors: ClassVar[bool] = False
    config_class: ClassVar[type] = ElementGRUConfig
    config: ElementGRUConfig

    @property
    def grad_clip(self) -> float:  # type: ignore[override]
        return self.config.clip

    def keeps(self, role: str) -> Any:
        return Units(Keeps(units=self.config.units))

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        return Advance(shared, xp.constant(self.config.lr))

    def _net(self, draw: Draw, key: Any, inputs: int, outputs: int) -> Any:
        k_cell, k_head = draw.split(key, 2)
        return {
            "gru": layers.gru_init(draw, k_cell, inputs, self.config.units),
            "head": layers.linear(draw, k_head, self.config.units, outputs),
        }


def _run(
    xp: Ops, theta: Any, signal: Array, hidden: Array
) -> tuple[list[Array], Array]:
    """A network's outputs [*lead, *s] each for a signal [*lead, *s, i], and its next
    hidden units [*lead, *s, h]."""
    hidden = layers.gru(xp, theta["gru"], signal, hidden)
    found = layers.affine(xp, theta["head"], hidden)
    return [found[..., k] for k in range(found.shape[-1])], hidden


class Optim4RLState(NamedTuple):
    """Hidden units of the two networks, behind the tensor's axes."""

    first: Any  # [*s, h]
    second: Any  # [*s, h]


class Optim4RL(_ElementGRURule):
    """See the module docstring."""

    name: ClassVar[str] = "optim4rl"

    def init_theta(self, draw: Draw, key: Any) -> Any:
        k_first, k_second = draw.split(key, 2)
        return {
            "first": self._net(draw, k_first, 1, 1),
            "second": self._net(draw, k_second, 1, 1),
        }

    def keeps(self, role: str) -> Optim4RLState:
        units = Keeps(units=self.config.units)
        return Optim4RLState(units, units)

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Optim4RLState,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        grad = xp.stop_gradient(grad)
        signal = grad[..., None]
        (out1,), first = _run(xp, theta["first"], signal, state.first)
        (out2,), second = _run(xp, theta["second"], xp.square(signal), state.second)
        magnitude = xp.sign(grad) * xp.exp(out1)
        scale = xp.rsqrt(xp.exp(out2) + 1e-8)
        return -self.config.lr * magnitude * scale, Optim4RLState(first, second)


class LinearOptim(_ElementGRURule):
    """See the module docstring."""

    name: ClassVar[str] = "linear_optim"

    def init_theta(self, draw: Draw, key: Any) -> Any:
        return self._net(draw, key, 1, 3)

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Units,
        param: Array,
    ) -> Steps:
        """Elements wait for their first gradient: as long as it was always exactly
        zero they keep their first state and do not move."""
        yield from form.no_sums()
        grad = xp.stop_gradient(grad)
        outputs, hidden = _run(xp, theta, grad[..., None], state.units)
        gain, size, offset = outputs
        delta = -self.config.lr * (xp.exp(gain) * grad + xp.exp(size) * offset)
        waiting = layers.waiting(grad, (xp.all(state.units == 0.0, axis=-1),))
        hidden = xp.where(waiting[..., None], state.units, hidden)
        return xp.where(~waiting, delta, 0.0), Units(hidden)


class L2LGD2(_ElementGRURule):
    """See the module docstring."""

    name: ClassVar[str] = "l2lgd2"

    def init_theta(self, draw: Draw, key: Any) -> Any:
        return self._net(draw, key, 2, 1)

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Units,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        grad = xp.stop_gradient(grad)
        signal = log_and_sign(xp, grad, LOG_RANGE)
        (rate,), hidden = _run(xp, theta, signal, state.units)
        return -self.config.lr * xp.exp(rate) * grad, Units(hidden)
