"""Meta-learned hyperparameters of hand-made rules: the simplest learned optimizers.

Three rules with a handful of meta-parameters each. They are the sanity check of any
meta-training (their optimum is known by a grid search) and strong baselines on tasks
like those they were trained on.

- `learned_sgd`: heavy-ball momentum; learning rate and momentum (2).
- `learned_adam`: Adam with bias correction; learning rate, two decays, epsilon (4).
- `scheduled_adam`: the same times a schedule, piecewise linear in the logarithm between
  equally spaced knots over the run (4 + knots, 12 by default). Needs the horizon.

None needs the loss. Rates are learned as logarithms and decays as log(1 - decay), so
that perturbations of one size suit all; names follow the library of Metz et al. (2022,
arXiv 2203.11860), whose trees load as they are.
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
from lopax.blocks.counted_rule import CountedRule

REFERENCE = "Metz et al., 2022, arXiv 2203.11860"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSGDConfig:
    """Where the meta-parameters of `LearnedSGD` start."""

    learning_rate: float = 1e-2
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "momentum", low=0.0, below=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedAdamConfig:
    """Where the meta-parameters of `LearnedAdam` start."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "eps", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledAdamConfig(LearnedAdamConfig):
    """Where the meta-parameters of `ScheduledAdam` start: a constant schedule."""

    knots: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "knots", low=2)


class LearnedSGD(CountedRule[Array]):
    """p <- p - lr m with m <- momentum m + g. A tensor's state is m."""

    name: ClassVar[str] = "learned_sgd"
    reference: ClassVar[str] = REFERENCE

    def __init__(self, config: LearnedSGDConfig | None = None):
        self.config = config or LearnedSGDConfig()

    def init_theta(self, key: Key) -> Theta:
        del key
        c = self.config
        return {
            "log_lr": jnp.asarray(math.log(c.learning_rate), jnp.float32),
            "one_minus_momentum": jnp.asarray(math.log(1.0 - c.momentum), jnp.float32),
        }

    def init_tensor(self, theta: Theta, param: Array) -> Array:
        del theta
        return jnp.zeros(param.shape, jnp.float32)

    def step_scale(self, theta: Theta) -> Scalar:
        return jnp.exp(theta["log_lr"])

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
        momentum = _decay(theta["one_minus_momentum"]) * state + grad
        return -jnp.exp(theta["log_lr"]) * momentum, momentum


class AdamState(NamedTuple):
    momentum: Float[Array, "*s"]
    second: Float[Array, "*s"]


class AdamContext(NamedTuple):
    rate: Scalar
    correction1: Scalar  # 1 - b1^t
    correction2: Scalar


class _AdamRule(TensorRule[Count, AdamContext, AdamState]):
    """Adam from meta-parameters; the variants say how the rate moves with time. The
    shared state is the number of updates that entered the moments."""

    needs_loss: ClassVar[bool] = False
    reference: ClassVar[str] = REFERENCE
    param_like: ClassVar[tuple[str, ...]] = ("momentum", "second")
    config: LearnedAdamConfig

    def init_theta(self, key: Key) -> Theta:
        del key
        c = self.config
        return {
            "log_lr": jnp.asarray(math.log(c.learning_rate), jnp.float32),
            "one_minus_beta1": jnp.asarray(math.log(1.0 - c.b1), jnp.float32),
            "one_minus_beta2": jnp.asarray(math.log(1.0 - c.b2), jnp.float32),
            "log_epsilon": jnp.asarray(math.log(c.eps), jnp.float32),
            **self._schedule_theta(),
        }

    def init_shared(self, theta: Theta, num_steps: Count, num_tensors: int) -> Count:
        del theta, num_steps, num_tensors
        return jnp.zeros((), jnp.int32)

    def init_tensor(self, theta: Theta, param: Array) -> AdamState:
        del theta
        zeros = jnp.zeros(param.shape, jnp.float32)
        return AdamState(zeros, zeros)

    def advance(
        self, theta: Theta, shared: Count, value: Any, fraction: Scalar, summaries: Any
    ) -> tuple[Count, AdamContext, Scalar]:
        del value, summaries
        t = (shared + 1).astype(jnp.float32)
        rate = jnp.exp(theta["log_lr"] + self._log_schedule(theta, fraction))
        b1, b2 = _decay(theta["one_minus_beta1"]), _decay(theta["one_minus_beta2"])
        return shared + 1, AdamContext(rate, 1.0 - b1**t, 1.0 - b2**t), rate

    def step(
        self,
        theta: Theta,
        context: AdamContext,
        index: Leaf,
        grad: Array,
        state: AdamState,
        param: Array,
    ) -> tuple[Array, AdamState]:
        del index, param
        b1, b2 = _decay(theta["one_minus_beta1"]), _decay(theta["one_minus_beta2"])
        momentum = b1 * state.momentum + (1.0 - b1) * grad
        second = b2 * state.second + (1.0 - b2) * jnp.square(grad)
        m_hat = momentum / context.correction1
        # The floor under the root only keeps its derivative finite at zero.
        root = jnp.sqrt(second / context.correction2 + 1e-30)
        delta = -context.rate * m_hat / (root + jnp.exp(theta["log_epsilon"]))
        return delta, AdamState(momentum, second)

    def _schedule_theta(self) -> dict[str, Array]:
        return {}

    def _log_schedule(self, theta: Theta, fraction: Scalar) -> Scalar | float:
        del theta, fraction
        return 0.0


class LearnedAdam(_AdamRule):
    """See the module docstring."""

    name: ClassVar[str] = "learned_adam"
    needs_horizon: ClassVar[bool] = False

    def __init__(self, config: LearnedAdamConfig | None = None):
        self.config = config or LearnedAdamConfig()


class ScheduledAdam(_AdamRule):
    """See the module docstring. Past the horizon the last knot's rate goes on."""

    name: ClassVar[str] = "scheduled_adam"
    needs_horizon: ClassVar[bool] = True

    def __init__(self, config: ScheduledAdamConfig | None = None):
        config = config or ScheduledAdamConfig()
        self.config, self._knots = config, config.knots

    def _schedule_theta(self) -> dict[str, Array]:
        return {"log_schedule": jnp.zeros((self._knots,), jnp.float32)}

    def _log_schedule(self, theta: Theta, fraction: Scalar) -> Scalar:
        places = jnp.linspace(0.0, 1.0, self._knots, dtype=jnp.float32)
        return jnp.interp(fraction, places, theta["log_schedule"])


def _decay(log_one_minus: Scalar) -> Scalar:
    """A decay in [0, 1) from log(1 - decay)."""
    return 1.0 - jnp.exp(jnp.clip(log_one_minus, -13.0, 0.0))
