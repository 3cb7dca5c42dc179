"""Celo2 in torch: a learned direction of fixed size, orthogonalised for matrices.

Moudgil, Knyazev and Belilovsky (2026, arXiv 2602.19142). The counterpart of
`lopax.architectures.celo2`, with the same numbers. Does not need the loss, and the
horizon only with a schedule, which the bundled weights include.

Each tensor has a role, by name, rank or predicate, or by its parameter group:

- "orthogonal": the learned direction, orthogonalised as in Muon (`orthogonalizer`);
- "learned": the learned direction;
- "adam": Adam at `adam_mult` times the step.

As in `lopax.torch.celo_adam`, Adam's bias correction (off by default) counts the steps
of each tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lopax._core import polar
from lopax._core.config import check_choice, check_range
from lopax._core.routing import Route, check_roles, role_of, vectors_and_tables
from lopax._core.run import Run
from lopax.rules import channels
from lopax.rules.element_net import ElementNet, Epsilons, Numbers
from lopax.torch import elements, moments
from lopax.torch.geometry import Accumulator
from lopax.torch.orthogonalize import orthogonalize_batch
from lopax.torch.rule import Advance, Rows, Rule, Steps, Sum, TensorBatch
from lopax.torch.theta import published_mlp

ROLES = ("orthogonal", "learned", "adam")
SCHEDULES = ("constant", "cosine")
CONVOLUTIONS = ("slices", "flat")
EPS = 1e-9
ADAM_ROUTES = vectors_and_tables("adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Celo2Config:
    """Settings of `Celo2`, as in `lopax.architectures.celo2.Celo2Config`."""

    hidden: int = 8
    step_mult: float = 1e-3
    schedule: str = "constant"
    convolutions: str = "slices"
    orthogonalizer: str = "quintic"
    exp_mult: float = 0.0
    weight_decay: float = 0.0
    adam_mult: float = 20.0
    b1: float = 0.9
    b2: float = 0.95
    bias_correction: bool = False
    routes: tuple[Route, ...] = ADAM_ROUTES
    default_role: str = "orthogonal"

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        for name in ("step_mult", "adam_mult"):
            check_range(self, name, above=0.0)
        for name in ("exp_mult", "weight_decay"):
            check_range(self, name, low=0.0)
        for name in ("b1", "b2"):
            check_range(self, name, low=0.0, below=1.0)
        check_choice(self, "schedule", SCHEDULES)
        check_choice(self, "convolutions", CONVOLUTIONS)
        check_choice(self, "orthogonalizer", polar.CHOICES)
        check_roles(self, self.routes, self.default_role, ROLES)

    @property
    def element_net(self) -> ElementNet:
        return ElementNet(
            hidden=self.hidden,
            outputs=2 if self.exp_mult else 1,
            exp_mult=self.exp_mult,
            vector_channels=channels.CELO2_VECTOR,
            epsilons=Epsilons(second=1e-8, channel=EPS),
            per_matrix=True,
            hold_unreached=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Celo2BaseConfig(Celo2Config):
    """Settings of `Celo2Base`: the learned rule for every tensor."""

    routes: tuple[Route, ...] = ()
    default_role: str = "learned"


class Celo2Rule(Rule):
    """See the module docstring."""

    name: ClassVar[str] = "celo2"
    needs_loss: ClassVar[bool] = False
    config_class: ClassVar[type] = Celo2Config
    roles: ClassVar[tuple[str, ...]] = ROLES

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return self.config.schedule != "constant"

    @property
    def flattens(self) -> bool:  # type: ignore[override]
        return self.config.convolutions == "flat"

    @classmethod
    def theta_shapes(cls, config: Celo2Config) -> dict[str, tuple[int, ...]]:
        return elements.under("rule", config.element_net)

    @classmethod
    def constants(
        cls, config: Celo2Config, theta: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        del config, theta
        return moments.fixed(moments.THREE, 0.95, moments.THREE)

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        w1 = arrays.get("ff_mod_stack/~/w1")
        if w1 is None or w1.ndim != 2:
            return arrays
        outputs = (0, 1) if config.exp_mult else (0,)
        net = published_mlp(arrays, "ff_mod_stack/~/", outputs)
        return {f"rule/{k}": v for k, v in net.items()}

    def role(
        self,
        name: str | None,
        shape: tuple[int, ...],
        kind: str | None = None,
        routes: tuple[Route, ...] = (),
    ) -> str:
        c = self.config
        return role_of(name, shape, (*routes, *c.routes), c.default_role, kind)

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        del num_steps, starts
        return {}

    def accumulators(self, rank: int, axes: Any, role: str) -> dict[str, Accumulator]:
        if role != "adam":
            return moments.accumulators(rank, axes)
        whole = Accumulator(0, tuple(range(rank)))
        return {"momentum": whole, "second": whole, "step": Accumulator(0, ())}

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        del rows
        scale = torch.full_like(run.loss, self.config.step_mult)
        if self.needs_horizon:
            scale = scale * 0.5 * (1.0 + torch.cos(math.pi * run.fraction))
        return Advance(shared, scale)

    def element_net(self, role: str) -> ElementNet | None:
        return None if role == "adam" else self.config.element_net

    def numbers(self, context: Mapping[str, Tensor], scale: Tensor) -> Numbers:
        """The network's step is the direction itself."""
        del context
        return Numbers(
            network=elements.network(self.theta, "rule"),
            decays=moments.decays(self.theta),
            scale=-torch.ones_like(scale).reshape(1),
        )

    def step(self, batch: TensorBatch, scale: Tensor, alive: Tensor) -> Steps:
        c = self.config
        rate = -scale * alive
        if batch.role == "adam":
            direction = self._adam(batch, alive)
            rate = rate * c.adam_mult
        else:
            direction = yield from self._learned(batch, alive)
        if c.weight_decay:
            direction = direction + c.weight_decay * batch.params
        return direction * rate

    def _learned(
        self, batch: TensorBatch, alive: Tensor
    ) -> Generator[list[Sum], list[Tensor], Tensor]:
        """[B, *s] of unit root mean square per matrix, zero where there never was a
        gradient."""
        net = self.config.element_net
        numbers = self.numbers(batch.context, alive)
        direction = yield from elements.step(batch, net, numbers, alive)
        if batch.role == "orthogonal" and batch.axes is not None:
            direction = yield from orthogonalize_batch(
                direction, batch, self.config.orthogonalizer
            )
        over = tuple(1 + a for a in batch.matrix)
        squares = direction.square().sum(over, keepdim=True)
        (squares,) = yield [Sum(squares, batch.matrix)]
        count = math.prod(batch.shape[a] for a in batch.matrix)
        direction = direction * torch.rsqrt(EPS + squares / count)
        if batch.all_reached:
            return direction
        return direction.masked_fill_(moments.unreached(batch.state), 0.0)

    def _adam(self, batch: TensorBatch, alive: Tensor) -> Tensor:
        """Adam's direction [B, *s] with epsilon under the root."""
        c, grads, state = self.config, batch.grads, batch.state
        momentum, second, step = state["momentum"], state["second"], state["step"]
        momentum.lerp_(grads, (1.0 - c.b1) * alive)
        second.lerp_(grads * grads, (1.0 - c.b2) * alive)
        step += alive
        if c.bias_correction:
            t = step.clamp_min(1.0).reshape(-1, *(1,) * (grads.ndim - 1))
            momentum = momentum / (1.0 - c.b1**t)
            second = second / (1.0 - c.b2**t)
        return momentum * torch.rsqrt(second + 1e-8)


class Celo2BaseRule(Celo2Rule):
    """Celo2 with the learned rule for every tensor."""

    name: ClassVar[str] = "celo2_base"
    config_class: ClassVar[type] = Celo2BaseConfig
