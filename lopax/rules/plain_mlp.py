"""Plain MLP: the per-element rule without any second moment.

A rule of the library of Metz et al. (2022, arXiv 2203.11860), where it is called
MLPLOpt: the simplest network that learns an optimizer, and a baseline that is known to
fail away from its training tasks.

Needs neither the loss nor the horizon; sees, of every element, gradient, parameter and
six momenta, each brought to a root mean square of one over its tensor, and the number
of steps made: 19 numbers. 1,762 meta-parameters (19 -> 32 -> 32 -> 2), all of which
act; the published tree has the same.

Difference from the published code: gradients are clipped at 1e9 (it clips nothing).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import form, layers, time_features
from lopax.rules.form import Advance, Keeps, Rows, StepContext, Steps
from lopax.rules.ops import Array, Draw, Ops

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
NUM_INPUTS = 2 + len(DECAYS) + time_features.NUM_TIME


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainMLPConfig:
    """Settings of `PlainMLP`; the defaults are the published ones."""

    hidden: int = 32
    """Width of the two hidden layers."""
    step_mult: float = 1e-3
    """Step for an output of one, in the parameters' own units."""
    exp_mult: float = 1e-3
    """Scale of the log-magnitude output."""

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)


class PlainMLPState(NamedTuple):
    momenta: Any  # [6, *s] not bias-corrected


class PlainMLP(form.Rule):
    """See the module docstring."""

    name: ClassVar[str] = "plain_mlp"
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2203.11860"
    config_class: ClassVar[type] = PlainMLPConfig
    grad_clip: ClassVar[float] = layers.WIDE_CLIP
    config: PlainMLPConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        hidden = self.config.hidden
        return {"net": layers.mlp_init(draw, key, (NUM_INPUTS, hidden, hidden, 2))}

    def keeps(self, role: str) -> PlainMLPState:
        return PlainMLPState(Keeps(copies=len(DECAYS)))

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        return Advance(shared, xp.constant(self.config.step_mult))

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: PlainMLPState,
        param: Array,
    ) -> Steps:
        c, place = self.config, at.place
        column = place.per_layer(xp.constant(DECAYS))
        momenta = xp.ema(state.momenta, place.layered(grad), column)
        slow = [place.layer(momenta, k) for k in range(len(DECAYS))]
        channels = [grad, param, *slow]
        squares = yield [place.total_square(xp, x) for x in channels]
        scales = [layers.unit_scale(xp, s / place.size) for s in squares]
        times = time_features.tanh_of_step(xp, at.updates)
        mlp = xp.element_mlp(place, theta["net"], scales, times)
        direction, magnitude = mlp(channels)
        delta = -direction * xp.exp(c.exp_mult * magnitude) * c.step_mult
        delta = layers.hold_unreached(xp, place, delta, momenta)
        return delta, PlainMLPState(momenta)
