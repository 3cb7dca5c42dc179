"""STAR: a per-element MLP made stable by a nominal term and a preconditioner.

Harrison, Metz and Sohl-Dickstein, "A Closer Look at Learned Optimization: Stability,
Robustness, and Inductive Biases" (2022, arXiv 2209.11208). The update is the sum of a
learned ("black-box") part, divided by the root second moment as in Adam, and a nominal
part: a hand-made direction with a fixed step times a learned factor. The nominal part
keeps the dynamics contracting where the learned part has nothing to say; the paper
adds strong weight decay on theta in meta-training (an option of the outer optimizer,
not of this file).

Needs neither the loss nor the horizon; sees what Adafac-MLP sees. 202 meta-parameters
with the defaults here (MLP 39 -> 4 -> 4 -> 3 and seven decays). The published tree has
207 for every setting; output units that the settings switch off are dropped here: 197
act with the published class defaults, which switch nominal term, preconditioner and
both controllers off. The defaults here are the paper's optimizer, not those.

Differences from the published code: gradients are clipped at 1e9 (it clips nothing),
momentum decays are kept in [0, 1], and the option to multiply the learned part by the
mean gradient (whose sign it flips) does not exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax.rules import adafac_net, element_plain, form, moments
from lopax.rules.element_net import ElementNet
from lopax.rules.element_view import View
from lopax.rules.form import Advance, Place, Rows, StepContext, Steps
from lopax.rules.moments import Moments
from lopax.rules.ops import Array, Draw, Ops

DIRECTIONS = ("sgd", "sgdm", "aggmo", "adam", "adam_aggmo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class STARConfig:
    """Settings of `STAR`; the defaults are the paper's optimizer."""

    hidden: int = 4
    step_mult: float = 1e-3
    """Scale of the learned part."""
    exp_mult: float = 1e-3
    """Scale of every log-magnitude output."""
    precondition: bool = True
    """Divide the learned part by the root second moment."""
    nominal: float = 1e-3
    """Step of the nominal part; 0 switches it off."""
    nominal_direction: str = "adam_aggmo"
    """"adam_aggmo" is the mean over the three momenta of momentum over root second
    moment; "adam" and "sgdm" use the slowest momentum, "aggmo" the mean of all."""
    nominal_controller: bool = True
    """Let the MLP scale the nominal part."""
    weight_decay: float = 0.0
    """Inner weight decay, a share of the parameter removed each step."""
    decay_controller: bool = False
    """Let the MLP scale the weight decay."""

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_range(self, "nominal", low=0.0)
        check_range(self, "weight_decay", low=0.0, below=1.0)
        check_choice(self, "nominal_direction", DIRECTIONS)

    @property
    def published_outputs(self) -> tuple[int, ...]:
        """Which of the published network's four outputs the settings use."""
        used = (True, True, self.nominal_controller, self.decay_controller)
        return tuple(i for i, use in enumerate(used) if use)

    @property
    def element_net(self) -> ElementNet:
        outputs = len(self.published_outputs)
        return adafac_net.element_net(self.hidden, outputs, self.exp_mult)


class STAR(form.Rule):
    """See the module docstring. What it makes of the network's outputs needs what the
    network saw, so that it runs the plain form itself."""

    name: ClassVar[str] = "star"
    reference: ClassVar[str] = "Harrison et al., 2022, arXiv 2209.11208"
    config_class: ClassVar[type] = STARConfig
    grad_clip: ClassVar[float] = adafac_net.GRADIENT_BOUND
    config: STARConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        return adafac_net.init_theta(draw, key, c.hidden, c.element_net.outputs)

    def keeps(self, role: str) -> Moments:
        return moments.KEEPS

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        scale = xp.constant(self.config.nominal or self.config.step_mult)
        bias = adafac_net.bias(xp, theta, run.updates)
        return Advance(shared, scale, common={"bias": bias})

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Moments,
        param: Array,
    ) -> Steps:
        c, place = self.config, at.place
        numbers = adafac_net.numbers(xp, theta, at.scale, at.common)

        def combine(outputs: Sequence[Array], view: View) -> Array:
            by_unit = dict(zip(c.published_outputs, outputs, strict=True))
            delta = by_unit[0] * xp.exp(c.exp_mult * by_unit[1]) * c.step_mult
            if c.precondition:
                delta = delta * place.layer(view.rsqrt, 0)
            if c.nominal:
                # Without a controller the published code multiplies by exp(exp_mult).
                gain = xp.exp(c.exp_mult * by_unit.get(2, xp.constant(1.0)))
                delta = delta + c.nominal * gain * self._direction(xp, place, view)
            delta = view.hold_unreached(-delta)
            if c.weight_decay:
                share = xp.exp(c.exp_mult * by_unit.get(3, xp.constant(0.0)))
                delta = delta - c.weight_decay * share * place.layer(view.param, 0)
            return delta

        return (
            yield from element_plain.step(
                xp, place, c.element_net, numbers, grad, state, param, combine
            )
        )

    def _direction(self, xp: Ops, place: Place, view: View) -> Array:
        """The hand-made direction of the nominal part, [*lead, *s]."""
        kind = self.config.nominal_direction
        if kind == "sgd":
            return place.layer(view.grad, 0)
        found = [place.layer(view.momenta, k) for k in range(3)]
        average = kind in ("aggmo", "adam_aggmo")
        momentum = (found[0] + found[1] + found[2]) / 3.0 if average else found[-1]
        adaptive = kind in ("adam", "adam_aggmo")
        return momentum * place.layer(view.rsqrt, 0) if adaptive else momentum

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if not adafac_net.is_published(arrays) or arrays["nn/~/w2"].shape[1] != 4:
            return arrays
        return adafac_net.from_published(arrays, self.config.published_outputs)
