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
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.lifting import Leaf
from lopax._core.types import Count, Key, Theta
from lopax.blocks import first_gradient
from lopax.blocks.counted_rule import CountedRule, S
from lopax.blocks.log_sign import log_and_sign
from lopax.nets import gru, initializers, linear

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


class _ElementGRURule(CountedRule[S]):
    """What the three rules share: settings, and the number reported as step scale."""

    reference: ClassVar[str] = REFERENCE

    def __init__(self, config: ElementGRUConfig | None = None):
        self.config = config or ElementGRUConfig()

    def step_scale(self, theta: Theta) -> float:
        del theta
        return self.config.lr

    def gradient_bound(self, shared: Count) -> float:
        del shared
        return self.config.clip

    def _zeros(self, param: Array) -> Float[Array, "*s h"]:
        return jnp.zeros((*param.shape, self.config.units), jnp.float32)

    def _net(self, key: Key, inputs: int, outputs: int) -> Theta:
        k_cell, k_head = jax.random.split(key)
        return {
            "gru": gru.init(k_cell, inputs, self.config.units),
            "head": initializers.linear(k_head, self.config.units, outputs),
        }


def _run(
    theta: Theta, signal: Float[Array, "*s i"], hidden: Float[Array, "*s h"]
) -> tuple[Float[Array, "*s o"], Float[Array, "*s h"]]:
    """A network's outputs and its next hidden units."""
    hidden = gru.apply(theta["gru"], signal, hidden)
    return linear.apply(theta["head"], hidden), hidden


class Optim4RLState(NamedTuple):
    """Hidden units of the two networks, behind the tensor's axes."""

    first: Float[Array, "*s h"]
    second: Float[Array, "*s h"]


class Optim4RL(_ElementGRURule[Optim4RLState]):
    """See the module docstring."""

    name: ClassVar[str] = "optim4rl"

    def init_theta(self, key: Key) -> Theta:
        k_first, k_second = jax.random.split(key)
        return {"first": self._net(k_first, 1, 1), "second": self._net(k_second, 1, 1)}

    def init_tensor(self, theta: Theta, param: Array) -> Optim4RLState:
        del theta
        return Optim4RLState(self._zeros(param), self._zeros(param))

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: Optim4RLState,
        param: Array,
    ) -> tuple[Array, Optim4RLState]:
        del context, index, param
        grad = jax.lax.stop_gradient(grad)
        out1, first = _run(theta["first"], grad[..., None], state.first)
        out2, second = _run(theta["second"], jnp.square(grad)[..., None], state.second)
        magnitude = jnp.sign(grad) * jnp.exp(out1[..., 0])
        scale = jax.lax.rsqrt(jnp.exp(out2[..., 0]) + 1e-8)
        return -self.config.lr * magnitude * scale, Optim4RLState(first, second)


class LinearOptim(_ElementGRURule[Array]):
    """See the module docstring. A tensor's state is its units [*shape, units]."""

    name: ClassVar[str] = "linear_optim"

    def init_theta(self, key: Key) -> Theta:
        return self._net(key, 1, 3)

    def init_tensor(self, theta: Theta, param: Array) -> Array:
        del theta
        return self._zeros(param)

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: Array,
        param: Array,
    ) -> tuple[Array, Array]:
        del context, index, param
        grad = jax.lax.stop_gradient(grad)
        out, hidden = _run(theta, grad[..., None], state)
        gain, size, offset = out[..., 0], out[..., 1], out[..., 2]
        delta = -self.config.lr * (jnp.exp(gain) * grad + jnp.exp(size) * offset)
        return first_gradient.wait(grad, state, jnp.zeros(()), delta, hidden)


class L2LGD2(_ElementGRURule[Array]):
    """See the module docstring. A tensor's state is its units [*shape, units]."""

    name: ClassVar[str] = "l2lgd2"

    def init_theta(self, key: Key) -> Theta:
        return self._net(key, 2, 1)

    def init_tensor(self, theta: Theta, param: Array) -> Array:
        del theta
        return self._zeros(param)

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: Array,
        param: Array,
    ) -> tuple[Array, Array]:
        del context, index, param
        grad = jax.lax.stop_gradient(grad)
        out, hidden = _run(theta, log_and_sign(grad, LOG_RANGE), state)
        return -self.config.lr * jnp.exp(out[..., 0]) * grad, hidden
