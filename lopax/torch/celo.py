"""Celo in torch: a learned per-element rule times a learned schedule.

Moudgil, Knyazev, Lajoie and Belilovsky (2025, arXiv 2501.12670). The counterpart of
`lopax.architectures.celo`, with the same weights and the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax._core.sizes import SizeBounds
from lopax.rules.element_net import ElementNet, Numbers, check_decays
from lopax.torch import elements, moments, scheduler
from lopax.torch.elements import ElementRule
from lopax.torch.rule import Advance, Rows
from lopax.torch.theta import published_mlp, published_scheduler


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloConfig:
    """Settings of `Celo`, as in `lopax.architectures.celo.CeloConfig`."""

    phase: int = 2
    hidden: int = 4
    lstm: int = 64
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    second_decay: float = 0.999
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    step_mult: float = 1e-3
    exp_mult: float = 1e-3
    size_floor: float = 0.0
    vector_floor: float = 0.0
    size_limit: float | None = None
    trained_horizon: int | None = None

    def __post_init__(self) -> None:
        check_range(self, "phase", low=1, high=2)
        check_range(self, "hidden", low=2)
        check_range(self, "lstm", low=1)
        check_range(self, "second_decay", low=0.0, below=1.0)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_range(self, "size_floor", low=0.0)
        check_range(self, "vector_floor", low=0.0)
        if self.size_limit is not None:
            check_range(self, "size_limit", above=0.0)
        if self.trained_horizon is not None:
            check_range(self, "trained_horizon", low=1)
        check_decays(self, "momentum_decays", "factored_decays")

    @property
    def bounds(self) -> SizeBounds:
        return SizeBounds.to(self.size_floor, self.vector_floor, self.size_limit)

    @property
    def element_net(self) -> ElementNet:
        return ElementNet(self.hidden, exp_mult=self.exp_mult, bounds=self.bounds)


class CeloRule(ElementRule):
    """See the module docstring."""

    name: ClassVar[str] = "celo"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    config_class: ClassVar[type] = CeloConfig

    @classmethod
    def theta_shapes(cls, config: CeloConfig) -> dict[str, tuple[int, ...]]:
        rule = elements.under("rule", config.element_net)
        return rule | scheduler.shapes(config.lstm)

    @classmethod
    def constants(
        cls, config: CeloConfig, theta: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        del theta
        c = config
        decays = moments.fixed(c.momentum_decays, c.second_decay, c.factored_decays)
        return decays | scheduler.constants()

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        del config
        w1 = arrays.get("ff_mod_stack/~/w1")
        if w1 is None or w1.shape[0] != 1:
            return arrays
        net = published_mlp(arrays, "ff_mod_stack/~/", (0, 1))
        rule = {f"rule/{k}": v[0] for k, v in net.items()}
        return rule | published_scheduler(arrays, "scheduler/")

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        del starts
        return scheduler.init(self.theta, num_steps)

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        del rows
        c = self.config
        if c.phase == 1:
            return Advance(shared, torch.full_like(run.loss, c.step_mult))
        shared, multiplier = scheduler.advance(self.theta, shared, run)
        longer = scheduler.beyond(shared, c.trained_horizon)
        return Advance(shared, c.step_mult * multiplier * longer)

    def numbers(self, context: Mapping[str, Tensor], scale: Tensor) -> Numbers:
        del context
        network = elements.network(self.theta, "rule")
        return Numbers(network, moments.decays(self.theta), scale.reshape(1))
