"""Celo-Adam: Adam whose learning rate is a learned schedule.

Moudgil et al. (2025, arXiv 2501.12670), the variant with a hand-made direction: the
scheduler of Celo multiplies a base learning rate of 1e-3 (so the rate is
1e-4 exp(output)), the direction is bias-corrected Adam (b1 0.9, b2 0.999).

Needs the loss and the horizon. 35,649 meta-parameters (published tree: 36,865, with
an unused linear layer).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.blocks import scheduler
from lopax.blocks.scheduler import SchedulerState

STARTS = ("random", "falling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloAdamConfig:
    """Settings of `CeloAdam`; the defaults fit the published weights."""

    lstm: int = 64
    b1: float = 0.9
    b2: float = 0.999
    step_mult: float = 1e-3
    start: str = "random"
    """What `init_theta` begins with: "random" (as published) or "falling", a scheduler
    whose multiplier falls exponentially from 5 to 0.05."""

    def __post_init__(self) -> None:
        check_choice(self, "start", STARTS)
        check_range(self, "lstm", low=1)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "step_mult", above=0.0)


class AdamState(NamedTuple):
    momentum: Float[Array, "*s"]
    second: Float[Array, "*s"]


class AdamShared(NamedTuple):
    scheduler: SchedulerState
    applied: Count  # [] int32, updates that entered the moments


class AdamContext(NamedTuple):
    scale: Scalar
    correction1: Scalar
    correction2: Scalar


class CeloAdam(TensorRule[AdamShared, AdamContext, AdamState]):
    """See the module docstring."""

    name: ClassVar[str] = "celo_adam"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    reference: ClassVar[str] = "Moudgil et al., 2025, arXiv 2501.12670"
    param_like: ClassVar[tuple[str, ...]] = ("momentum", "second")

    def __init__(self, config: CeloAdamConfig | None = None):
        self.config = config or CeloAdamConfig()

    def init_theta(self, key: Key) -> Theta:
        theta = scheduler.init_theta(key, self.config.lstm)
        if self.config.start == "falling":
            theta = scheduler.following(theta, scheduler.falling(5.0, 0.05))
        return {"scheduler": theta}

    def init_shared(
        self, theta: Theta, num_steps: Count, num_tensors: int
    ) -> AdamShared:
        del num_tensors
        start = scheduler.init(theta["scheduler"], num_steps)
        return AdamShared(start, jnp.zeros((), jnp.int32))

    def init_tensor(self, theta: Theta, param: Array) -> AdamState:
        del theta
        return AdamState(
            jnp.zeros(param.shape, jnp.float32), jnp.zeros(param.shape, jnp.float32)
        )

    def advance(
        self,
        theta: Theta,
        shared: AdamShared,
        run: Run,
        summaries: Any,
    ) -> tuple[AdamShared, AdamContext, Scalar]:
        del summaries
        c = self.config
        state, multiplier = scheduler.advance(
            theta["scheduler"], shared.scheduler, run.loss, run.fraction
        )
        applied = shared.applied + 1
        t = applied.astype(jnp.float32)
        scale = c.step_mult * multiplier
        context = AdamContext(scale, 1.0 - c.b1**t, 1.0 - c.b2**t)
        return AdamShared(state, applied), context, scale

    def step(
        self,
        theta: Theta,
        context: AdamContext,
        index: int,
        grad: Array,
        state: AdamState,
        param: Array,
    ) -> tuple[Array, AdamState]:
        del theta, index, param
        c = self.config
        momentum = c.b1 * state.momentum + (1.0 - c.b1) * grad
        second = c.b2 * state.second + (1.0 - c.b2) * jnp.square(grad)
        m_hat = momentum / context.correction1
        v_hat = second / context.correction2
        delta = -context.scale * m_hat / (1e-8 + jnp.sqrt(v_hat + 1e-10))
        return delta, AdamState(momentum, second)

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if "rnn_params/step_size/w" not in arrays:
            return arrays
        schedule = scheduler.from_published(arrays)
        return {f"scheduler/{k}": v for k, v in schedule.items()}
