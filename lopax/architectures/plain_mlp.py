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
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.lifting import Leaf
from lopax._core.types import Count, Key, Theta
from lopax.blocks import accumulators, adafac_net, time_features
from lopax.blocks.counted_rule import CountedRule
from lopax.blocks.normalize import rms_scale
from lopax.nets import dense_mlp, mlp

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
    momenta: Float[Array, "6 *s"]  # not bias-corrected


class PlainMLP(CountedRule[PlainMLPState]):
    """See the module docstring."""

    name: ClassVar[str] = "plain_mlp"
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2203.11860"
    grad_clip: ClassVar[float] = adafac_net.GRADIENT_BOUND

    def __init__(self, config: PlainMLPConfig | None = None):
        self.config = config or PlainMLPConfig()

    def init_theta(self, key: Key) -> Theta:
        hidden = self.config.hidden
        return {"net": mlp.init(key, (NUM_INPUTS, hidden, hidden, 2))}

    def init_tensor(self, theta: Theta, param: Array) -> PlainMLPState:
        del theta
        return PlainMLPState(accumulators.zeros(len(DECAYS), param))

    def step_scale(self, theta: Theta) -> float:
        del theta
        return self.config.step_mult

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: PlainMLPState,
        param: Array,
    ) -> tuple[Array, PlainMLPState]:
        del index
        c = self.config
        momenta = accumulators.ema(state.momenta, grad, DECAYS)
        channels = [grad, param, *momenta]
        scales = [rms_scale(x) for x in channels]
        times = list(time_features.tanh_of_step(context))
        direction, magnitude = dense_mlp.apply(
            theta["net"],
            channels + times,
            scales + [jnp.ones((), jnp.float32)] * len(times),
        )
        delta = -direction * jnp.exp(c.exp_mult * magnitude) * c.step_mult
        delta = jnp.where(accumulators.reached(momenta), delta, 0.0)
        return delta, PlainMLPState(momenta)
