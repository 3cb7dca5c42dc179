"""The coordinate-wise LSTM of learning to learn, the classic of the field.

Andrychowicz et al., "Learning to learn by gradient descent by gradient descent" (2016,
arXiv 1606.04474). Every element of every tensor runs its own copy of one small LSTM
stack on its own gradient, log-scaled; the output is the step.

Needs neither the loss nor the horizon, and never looks at the parameters' values.
5,141 meta-parameters: two LSTM layers of 20 units (1,840 and 3,280) and a linear output
(21). State of 80 floats per parameter: for small problems. Meta-trained by
back-propagation through the run, so gradients arrive detached, as in the paper.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.lifting import Leaf
from lopax._core.types import Count, Key, Theta
from lopax.architectures.described import XP
from lopax.blocks import first_gradient
from lopax.blocks.counted_rule import CountedRule
from lopax.nets import initializers, linear, lstm
from lopax.nets.lstm import LSTMState
from lopax.rules.log_features import log_and_sign


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2OLSTMConfig:
    """Settings of `L2OLSTM`; the defaults are the paper's."""

    lstm: int = 20
    layers: int = 2
    log_range: float = 10.0
    """Gradients above exp(-log_range) enter by logarithm and sign, smaller ones
    linearly."""
    step_mult: float = 0.1
    """Step for an output of one."""

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "layers", low=1)
        check_range(self, "log_range", above=0.0)
        check_range(self, "step_mult", above=0.0)


class L2OLSTM(CountedRule[tuple[LSTMState, ...]]):
    """See the module docstring. A tensor's state is one `LSTMState` a layer, with the
    units behind the tensor's axes."""

    name: ClassVar[str] = "l2o_lstm"
    reference: ClassVar[str] = "Andrychowicz et al., 2016, arXiv 1606.04474"

    def __init__(self, config: L2OLSTMConfig | None = None):
        self.config = config or L2OLSTMConfig()

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        k_head, *k_layers = jax.random.split(key, 1 + c.layers)
        inputs = [2] + [c.lstm] * (c.layers - 1)
        layers = {
            f"lstm{i}": lstm.init(k, n, c.lstm)
            for i, (k, n) in enumerate(zip(k_layers, inputs, strict=True))
        }
        return {**layers, "head": initializers.linear(k_head, c.lstm, 1)}

    def init_tensor(self, theta: Theta, param: Array) -> tuple[LSTMState, ...]:
        del theta
        zeros = jnp.zeros((*param.shape, self.config.lstm), jnp.float32)
        return (LSTMState(zeros, zeros),) * self.config.layers

    def step_scale(self, theta: Theta) -> float:
        del theta
        return self.config.step_mult

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: tuple[LSTMState, ...],
        param: Array,
    ) -> tuple[Array, tuple[LSTMState, ...]]:
        del context, index, param
        # The paper drops the optimizee's second derivatives from the meta-gradient.
        signal = log_and_sign(XP, jax.lax.stop_gradient(grad), self.config.log_range)
        states = []
        for i, old in enumerate(state):
            new = lstm.apply(theta[f"lstm{i}"], signal, old)
            states.append(new)
            signal = new.hidden
        output = linear.apply(theta["head"], signal)[..., 0]
        delta = self.config.step_mult * output
        zero = jnp.zeros(())
        return first_gradient.wait(grad, state, zero, delta, tuple(states))
