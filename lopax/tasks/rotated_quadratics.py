"""Random quadratic bowls in random directions: the problems of a classic analysis.

Maheswaranathan et al., "Reverse engineering learned optimizers reveals known and novel
mechanisms" (2020, arXiv 2011.02159).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.task import Task, TaskFamily
from lopax._core.types import Batch, Key, Params, Scalar, TaskState


class QuadraticProblem(NamedTuple):
    """One sampled problem."""

    hessian: Float[Array, "n n"]
    linear: Float[Array, "n"]
    offset: Scalar  # makes the minimum zero
    start: Float[Array, "n"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RotatedQuadratic(Task):
    """loss = x H x / 2 + b x + c, from a fixed start; the minimum is 0.

    The meta-loss (`normalize`) is the loss as a share of the loss at the start, at
    most `loss_bound`.
    """

    problem: QuadraticProblem

    def init(self, key: Key) -> tuple[Params, TaskState]:
        del key
        return {"x": self.problem.start}, None

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        del key, batch
        return self.value(params["x"]), task_state

    def value(self, x: Float[Array, "n"]) -> Any:
        """The loss [] at a point."""
        p = self.problem
        bowl = 0.5 * x @ jnp.dot(p.hessian, x, precision="highest")
        return bowl + p.linear @ x + p.offset

    def normalize(self, loss: Scalar) -> Scalar:
        share = loss / self.value(self.problem.start)
        share = jnp.where(jnp.isfinite(share), share, self.loss_bound)
        return jnp.minimum(share, self.loss_bound)

    @property
    def loss_bound(self) -> float:
        return 1e3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedQuadratics(TaskFamily):
    """Bowls with log-uniform eigenvalues, random axes, linear term and start N(0, I).

    Raises `ConfigError` for a setting out of range.
    """

    dimension: int = dataclasses.field(default=5, metadata={"static": True})
    low: float = dataclasses.field(default=1e-3, metadata={"static": True})
    """Smallest eigenvalue."""
    high: float = dataclasses.field(default=1.0, metadata={"static": True})

    def __post_init__(self) -> None:
        check_range(self, "dimension", low=1)
        check_range(self, "low", above=0.0)
        check_range(self, "high", low=self.low)

    def sample(self, key: Key, stratum: Any = None) -> QuadraticProblem:
        del stratum
        k_values, k_axes, k_linear, k_start = jax.random.split(key, 4)
        n, bounds = self.dimension, (math.log(self.low), math.log(self.high))
        logs = jax.random.uniform(k_values, (n,), minval=bounds[0], maxval=bounds[1])
        values = jnp.exp(logs)
        axes = jax.random.orthogonal(k_axes, n)
        linear = jax.random.normal(k_linear, (n,))
        # The minimum of x H x / 2 + b x is -b H^-1 b / 2, in the axes' coordinates.
        lowest = -0.5 * jnp.sum(jnp.square(axes.T @ linear) / values)
        return QuadraticProblem(
            hessian=(axes * values) @ axes.T,
            linear=linear,
            offset=-lowest,
            start=jax.random.normal(k_start, (n,)),
        )

    def task(self, config: QuadraticProblem) -> RotatedQuadratic:
        return RotatedQuadratic(config)
