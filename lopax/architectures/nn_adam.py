"""NN-Adam: an LSTM per tensor moves Adam's four hyperparameters.

A rule of the library of Metz et al. (2022, arXiv 2203.11860), used as a baseline in
several papers; it has none of its own.

Needs neither the loss nor the horizon; sees means, variances and signs of each
tensor's gradient, momentum, second moment and parameters, whether it is a scalar or a
vector, and its present hyperparameters: 19 numbers. Each step uses the hyperparameters
the LSTM set on the step before. 21,896 meta-parameters with 64 units (the published
class has 32 and 6,856); all of them act.

Compared with Adam the learning rate is multiplied by 1 + epsilon, so that a large
epsilon, which switches the second moment off, does not also switch the step off. There
is no bias correction.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.lifting import Leaf
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.blocks import tensor_features
from lopax.blocks.tensor_features import flag, log_magnitude, mean, variance
from lopax.nets import linear, lstm
from lopax.nets.lstm import LSTMState

NUM_INPUTS = 19
HYPERS = ("lr", "beta1", "beta2", "epsilon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNAdamConfig:
    """Settings of `NNAdam`; the learning rate and so on are where theta starts."""

    lstm: int = 64
    output_scale: float = 0.01
    """How far an output of one moves a (log-scale) hyperparameter."""
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "output_scale", above=0.0)
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "beta1", low=0.0, below=1.0)
        check_range(self, "beta2", low=0.0, below=1.0)
        check_range(self, "epsilon", above=0.0)


class NNAdamState(NamedTuple):
    momentum: Float[Array, "*s"]
    second: Float[Array, "*s"]
    hypers: Float[Array, "4"]  # in the order of HYPERS, on the scales of `_decode`


class NNAdamContext(NamedTuple):
    deltas: Float[Array, "tensors 4"]  # what each tensor's hyperparameters move by


class NNAdam(TensorRule[LSTMState, NNAdamContext, NNAdamState]):
    """See the module docstring. The shared state is the LSTM's, one row a tensor."""

    name: ClassVar[str] = "nn_adam"
    needs_loss: ClassVar[bool] = False
    needs_horizon: ClassVar[bool] = False
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2203.11860"
    param_like: ClassVar[tuple[str, ...]] = ("momentum", "second")

    def __init__(self, config: NNAdamConfig | None = None):
        self.config = config or NNAdamConfig()

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        return {
            "initial": {
                "hidden": jnp.zeros((c.lstm,), jnp.float32),
                "cell": jnp.zeros((c.lstm,), jnp.float32),
            },
            "lstm": lstm.init(key, NUM_INPUTS, c.lstm),
            # Zero weights: an untrained NN-Adam is Adam without bias correction.
            "head": {
                "w": jnp.zeros((c.lstm, 4), jnp.float32),
                "b": jnp.zeros((4,), jnp.float32),
            },
            "hypers": {
                "lr": jnp.asarray(0.1 * math.log(c.learning_rate), jnp.float32),
                "beta1": jnp.asarray(0.1 * math.log(1.0 - c.beta1), jnp.float32),
                "beta2": jnp.asarray(0.1 * math.log(1.0 - c.beta2), jnp.float32),
                "epsilon": jnp.asarray(0.1 * math.log(c.epsilon), jnp.float32),
            },
        }

    def init_shared(
        self, theta: Theta, num_steps: Count, num_tensors: int
    ) -> LSTMState:
        del num_steps
        return lstm.tile(theta["initial"], num_tensors)

    def init_tensor(self, theta: Theta, param: Array) -> NNAdamState:
        zeros = jnp.zeros(param.shape, jnp.float32)
        hypers = jnp.stack([theta["hypers"][name] for name in HYPERS])
        return NNAdamState(zeros, zeros, hypers)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: NNAdamState, param: Array
    ) -> Float[Array, "23"]:
        """The LSTM's 19 inputs, then the four hyperparameters for the report."""
        del theta
        momentum, second = _accumulate(state, grad)
        inputs = {
            "is_scalar": flag(len(leaf.shape) == 0),
            "is_bias": flag(len(leaf.shape) == 1),
            "mean_gabs_mag": 0.5 * log_magnitude(mean(jnp.abs(grad))),
            "mean_sign": jnp.sign(mean(second)),
            "mean_rms": 0.5 * log_magnitude(mean(second)),
            "var_rms": 0.5 * log_magnitude(variance(second)),
        }
        for name, x in (("g", grad), ("m", momentum), ("p", param)):
            inputs[f"mean_{name}_mag"] = 0.5 * log_magnitude(mean(x))
            inputs[f"mean_{name}_sign"] = jnp.sign(mean(x))
            inputs[f"var_{name}"] = 0.5 * log_magnitude(variance(x))
        for name, x in zip(HYPERS, state.hypers, strict=True):
            inputs[name] = 0.2 * jnp.clip(x, -5.0, 5.0)
        ordered = tensor_features.in_name_order(inputs)
        return jnp.concatenate([ordered, _decode(state.hypers)])

    def advance(
        self,
        theta: Theta,
        shared: LSTMState,
        value: Any,
        fraction: Scalar,
        summaries: Float[Array, "tensors 23"],
    ) -> tuple[LSTMState, NNAdamContext, Scalar]:
        del value, fraction
        out = lstm.apply(theta["lstm"], summaries[:, :NUM_INPUTS], shared)
        deltas = self.config.output_scale * linear.apply(theta["head"], out.hidden)
        mean_rate = jnp.mean(summaries[:, NUM_INPUTS])
        return out, NNAdamContext(deltas), mean_rate

    def step(
        self,
        theta: Theta,
        context: NNAdamContext,
        index: Leaf,
        grad: Array,
        state: NNAdamState,
        param: Array,
    ) -> tuple[Array, NNAdamState]:
        del theta, param
        rate, _, _, epsilon = _decode(state.hypers)
        momentum, second = _accumulate(state, grad)
        gain = rate * (1.0 + epsilon)
        delta = -gain * momentum / (epsilon + jnp.sqrt(second + 1e-10))
        hypers = state.hypers + context.deltas[index]
        return delta, NNAdamState(momentum, second, hypers)

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if "rnn_to_controls_params/rnn_to_controls/w" not in arrays:
            return arrays
        names = {f"hypers/{h}": f"per_layer_{h}" for h in HYPERS}
        for leaf in ("w", "b"):
            names[f"lstm/{leaf}"] = f"rnn_params/rnn/linear/{leaf}"
            names[f"head/{leaf}"] = f"rnn_to_controls_params/rnn_to_controls/{leaf}"
        found = {ours: arrays[theirs] for ours, theirs in names.items()}
        for k in ("hidden", "cell"):
            found[f"initial/{k}"] = arrays[f"lstm_init_state/{k}"].reshape(-1)
        return found


def _decode(hypers: Float[Array, "4"]) -> Float[Array, "4"]:
    """lr, beta1, beta2, epsilon from ten times smaller logarithms, within bounds."""
    lr, beta1, beta2, epsilon = 10.0 * hypers
    return jnp.stack(
        [
            jnp.exp(jnp.clip(lr, math.log(1e-8), math.log(1e3))),
            1.0 - jnp.exp(jnp.clip(beta1, -10.0, 0.0)),
            1.0 - jnp.exp(jnp.clip(beta2, -10.0, 0.0)),
            jnp.exp(jnp.clip(epsilon, math.log(1e-11), math.log(1e4))),
        ]
    )


def _accumulate(state: NNAdamState, grad: Array) -> tuple[Array, Array]:
    """Momentum and second moment after this gradient, with the tensor's own decays."""
    _, beta1, beta2, _ = _decode(state.hypers)
    momentum = beta1 * state.momentum + (1.0 - beta1) * grad
    second = beta2 * state.second + (1.0 - beta2) * jnp.square(grad)
    return momentum, second
