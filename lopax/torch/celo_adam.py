"""Celo-Adam in torch: Adam whose learning rate is a learned schedule.

Moudgil et al. (2025, arXiv 2501.12670). The counterpart of
`lopax.architectures.celo_adam`, with one difference: bias correction counts the steps
of each tensor, so that a tensor that joins late, or has no gradient in some steps, is
corrected rightly. Where all tensors are there from the first step the numbers agree.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.torch import scheduler
from lopax.torch.geometry import Accumulator
from lopax.torch.rule import Advance, Rows, Rule, Steps, TensorBatch
from lopax.torch.theta import published_scheduler


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloAdamConfig:
    """Settings of `CeloAdam`, as in `lopax.architectures.celo_adam`."""

    lstm: int = 64
    b1: float = 0.9
    b2: float = 0.999
    step_mult: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "step_mult", above=0.0)


class CeloAdamRule(Rule):
    """See the module docstring."""

    name: ClassVar[str] = "celo_adam"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    config_class: ClassVar[type] = CeloAdamConfig

    @classmethod
    def theta_shapes(cls, config: CeloAdamConfig) -> dict[str, tuple[int, ...]]:
        return scheduler.shapes(config.lstm)

    @classmethod
    def constants(
        cls, config: CeloAdamConfig, theta: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        del config, theta
        return scheduler.constants()

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        del config
        published = "rnn_params/step_size/w" in arrays
        return published_scheduler(arrays, "scheduler/") if published else arrays

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        del starts
        return scheduler.init(self.theta, num_steps)

    def accumulators(self, rank: int, axes: Any, role: str) -> dict[str, Accumulator]:
        del axes, role
        every = tuple(range(rank))
        return {
            "momentum": Accumulator(0, every),
            "second": Accumulator(0, every),
            "step": Accumulator(0, ()),
        }

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        del rows
        shared, multiplier = scheduler.advance(self.theta, shared, run)
        return Advance(shared, self.config.step_mult * multiplier)

    def step(self, batch: TensorBatch, scale: Tensor, alive: Tensor) -> Steps:
        c, grads = self.config, batch.grads
        momentum, second, step = (
            batch.state[k] for k in ("momentum", "second", "step")
        )
        momentum.lerp_(grads, (1.0 - c.b1) * alive)
        second.lerp_(grads * grads, (1.0 - c.b2) * alive)
        step += alive
        # A tensor whose every step was skipped has step 0: its correction is unused.
        t = step.clamp_min(1.0).reshape(-1, *(1,) * (grads.ndim - 1))
        root = torch.sqrt(second / (1.0 - c.b2**t) + 1e-10).add_(1e-8)
        size = -scale * alive / (1.0 - c.b1**t)
        torch.mul(torch.div(momentum, root, out=root), size, out=grads)
        yield from ()  # a rule is a generator; this one needs no sums over a tensor
        return grads
