"""Quadratic bowls with a given conditioning: tasks whose answer is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.task import Task
from lopax._core.types import Batch, Key, Params, Scalar, TaskState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic(Task):
    """loss = mean_i(lambda_i x_i^2) / 2 + noise mean_i(e_i x_i).

    The eigenvalues lambda are log-spaced from 1 / condition to 1, e is a standard
    normal vector drawn anew each step, x starts standard normal, {"x": [dimension]}.
    The minimum (of the mean loss) is 0, at x = 0.

    Raises `ConfigError` for a setting out of range.
    """

    dimension: int = dataclasses.field(default=10, metadata={"static": True})
    condition: float = dataclasses.field(default=100.0, metadata={"static": True})
    noise: float = dataclasses.field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        check_range(self, "dimension", low=1)
        check_range(self, "condition", low=1.0)
        check_range(self, "noise", low=0.0)

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return {"x": jax.random.normal(key, (self.dimension,))}, None

    def batch(self, key: Key, split: str = "train") -> Batch:
        """The noise vector; none outside of training."""
        if split != "train":
            return jnp.zeros((self.dimension,))
        return jax.random.normal(key, (self.dimension,))

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        del key
        x = params["x"]
        bowl = 0.5 * jnp.mean(self.eigenvalues * jnp.square(x))
        return bowl + self.noise * jnp.mean(batch * x), task_state

    @property
    def eigenvalues(self) -> Float[Array, " n"]:
        """[dimension], from 1 / condition to 1."""
        low = -jnp.log10(self.condition)
        return jnp.logspace(low, 0.0, self.dimension)

    @property
    def loss_bound(self) -> float:
        return 10.0
