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
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf
from lopax._core.types import Count, Key, Theta
from lopax.blocks import adafac_net, element_net, moments
from lopax.blocks.counted_rule import CountedRule
from lopax.blocks.element_net import ElementView
from lopax.blocks.moments import Moments
from lopax.rules.element_net import ElementNet, Numbers

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


class STAR(CountedRule[Moments]):
    """See the module docstring."""

    name: ClassVar[str] = "star"
    reference: ClassVar[str] = "Harrison et al., 2022, arXiv 2209.11208"
    param_like: ClassVar[tuple[str, ...]] = ("second",)
    grad_clip: ClassVar[float] = adafac_net.GRADIENT_BOUND

    def __init__(self, config: STARConfig | None = None):
        self.config = config or STARConfig()

    def init_theta(self, key: Key) -> Theta:
        outputs = self.config.element_net.outputs
        return adafac_net.init_theta(key, self.config.hidden, outputs)

    def init_tensor(self, theta: Theta, param: Array) -> Moments:
        del theta
        return moments.init(param)

    def step_scale(self, theta: Theta) -> float:
        del theta
        return self.config.nominal or self.config.step_mult

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: Moments,
        param: Array,
    ) -> tuple[Array, Moments]:
        del index
        c = self.config
        net, decays = adafac_net.at_step(theta, context)
        outputs, view, state = element_net.outputs(
            c.element_net, Numbers(net, decays, 1.0), grad, state, param
        )
        by_unit = dict(zip(c.published_outputs, outputs, strict=True))
        learned = by_unit[0] * jnp.exp(c.exp_mult * by_unit[1]) * c.step_mult
        if c.precondition:
            learned = learned * view.rsqrt
        # Without a controller the published code still multiplies by exp(exp_mult).
        one: Array = jnp.float32(1.0)
        zero: Array = jnp.float32(0.0)
        gain = jnp.exp(c.exp_mult * by_unit.get(2, one))
        nominal = c.nominal * gain * _direction(c.nominal_direction, view)
        decay = c.weight_decay * jnp.exp(c.exp_mult * by_unit.get(3, zero)) * param
        delta = jnp.where(moments.reached(state), -learned - nominal, 0.0)
        return delta - decay, state

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if not adafac_net.is_published(arrays) or arrays["nn/~/w2"].shape[1] != 4:
            return arrays
        return adafac_net.from_published(arrays, self.config.published_outputs)


def _direction(kind: str, view: ElementView) -> Array:
    """The hand-made direction of the nominal part, [*s]."""
    if kind == "sgd":
        return view.grad
    average = kind in ("aggmo", "adam_aggmo")
    momentum = jnp.mean(view.momenta, axis=0) if average else view.momenta[-1]
    adaptive = kind in ("adam", "adam_aggmo")
    return momentum * view.rsqrt if adaptive else momentum
