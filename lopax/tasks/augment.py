"""Task augmentation: the same function seen through rescaled parameters.

Reparametrisation draws factors tau, starts the inner problem at theta0 / tau and
evaluates the loss at tau * theta. The function and its value at the start are
unchanged; gradients are multiplied by tau, so the optimizer meets parameters and
gradients over many orders of magnitude (Metz et al., 2022, arXiv 2211.09760).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core.config import check_choice, check_range
from lopax._core.task import Task, TaskFamily, WrappedTask
from lopax._core.types import Batch, Key, Params, Scalar, TaskState

LEVELS = ("none", "global", "tensor", "parameter", "mixed")
MIXED_LEVELS = ("none",) * 2 + ("global",) * 2 + ("tensor",) * 2 + ("parameter",)
MIXED_RANGES = {"global": (1e-3, 1e3), "tensor": (1e-2, 1e2), "parameter": (0.1, 10.0)}
"""The published list of levels, drawn evenly, and the intervals of tau at each."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ReparametrisedTask(WrappedTask):
    """`base` seen through `tau`, a pytree that broadcasts against the parameters."""

    base: Task
    tau: Any

    def init(self, key: Key) -> tuple[Params, TaskState]:
        params, task_state = self.base.init(key)
        return jax.tree.map(jnp.divide, params, self._tau(params)), task_state

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        return self.base.loss(self.to_base(params), task_state, key, batch)

    def value_and_grad(
        self, params: Params, task_state: TaskState, key: Key, split: str = "train"
    ) -> tuple[Scalar, Params, TaskState]:
        # Through the base task's own gradient (it may not come from autodiff).
        loss, grads, task_state = self.base.value_and_grad(
            self.to_base(params), task_state, key, split
        )
        return loss, jax.tree.map(jnp.multiply, grads, self._tau(grads)), task_state

    def evaluate(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> Scalar:
        return self.base.evaluate(self.to_base(params), task_state, key, split)

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        return self.base.metrics(self.to_base(params), task_state, key, split)

    def to_base(self, params: Params) -> Params:
        """The base task's parameters, tau * params."""
        return jax.tree.map(jnp.multiply, params, self._tau(params))

    def _tau(self, params: Params) -> Params:
        """One factor (of any level) per tensor, in the tensor's dtype."""
        if jax.tree_util.treedef_is_leaf(jax.tree.structure(self.tau)):
            return jax.tree.map(lambda p: jnp.asarray(self.tau, p.dtype), params)
        return jax.tree.map(lambda t, p: jnp.asarray(t, p.dtype), self.tau, params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Reparametrised(TaskFamily):
    """A family whose tasks are each reparametrised at random. A pytree if its base is.

    A configuration is {"base": the family's own, "tau": the factors}, with
    tau = exp(U(ln low, ln high)), drawn once

    - for the task ("global", tau []),
    - for each tensor ("tensor", each []),
    - for each parameter ("parameter", of the tensors' shapes),
    - or at a level drawn for the task from `MIXED_LEVELS` ("mixed": none, global and
      tensor with weight 2 each, parameter with weight 1; the intervals are those of
      `MIXED_RANGES`, [low, high] is not used; of the tensors' shapes),
    - or not at all ("none").

    Raises `ConfigError` for an unknown level or an interval that is not
    0 < low <= high.
    """

    base: TaskFamily
    level: str = dataclasses.field(default="global", metadata={"static": True})
    low: float = dataclasses.field(default=1e-3, metadata={"static": True})
    high: float = dataclasses.field(default=1e3, metadata={"static": True})

    def __post_init__(self) -> None:
        check_choice(self, "level", LEVELS)
        check_range(self, "low", above=0.0)
        check_range(self, "high", low=self.low, below=math.inf)

    @property
    def num_strata(self) -> int:  # type: ignore[override]
        return self.base.num_strata

    def sample(self, key: Key, stratum: Any = None) -> dict[str, Any]:
        base_key, tau_key = jax.random.split(key)
        config = self.base.sample(base_key, stratum)
        if self.level == "none":
            return {"base": config}
        shapes, _ = jax.eval_shape(
            lambda k: self.base.task(config).init(k), jax.random.key(0)
        )
        if self.level == "mixed":
            return {"base": config, "tau": _mixed(tau_key, shapes)}
        tau = _log_uniform(tau_key, self.level, self.low, self.high, shapes)
        return {"base": config, "tau": tau}

    def task(self, config: dict[str, Any]) -> Task:
        task = self.base.task(config["base"])
        if self.level == "none":
            return task
        return ReparametrisedTask(task, config["tau"])


def _log_uniform(key: Key, level: str, low: float, high: float, shapes: Any) -> Any:
    """tau at one level; a bare scalar for "global".

    One draw for all tensors: every further call of the generator would lengthen the
    compilation of programs that sample tasks.
    """
    leaves, treedef = jax.tree.flatten(shapes)
    sizes = [leaf.size if level == "parameter" else 1 for leaf in leaves]
    count = 1 if level == "global" else sum(sizes)
    low_log, high_log = math.log(low), math.log(high)
    tau = jnp.exp(jax.random.uniform(key, (count,), minval=low_log, maxval=high_log))
    if level == "global":
        return tau[0]
    if level == "tensor":
        return treedef.unflatten([tau[i] for i in range(count)])
    parts = jnp.split(tau, np.cumsum(sizes)[:-1])
    return treedef.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def _mixed(key: Key, shapes: Any) -> Any:
    """tau of the tensors' shapes at a level drawn from `MIXED_LEVELS`."""
    choice_key, *keys = jax.random.split(key, 1 + len(MIXED_RANGES))
    choice = jax.random.randint(choice_key, (), 0, len(MIXED_LEVELS))
    number = jnp.asarray([LEVELS.index(level) for level in MIXED_LEVELS])[choice]
    drawn = {
        level: _log_uniform(k, level, low, high, shapes)
        for k, (level, (low, high)) in zip(keys, MIXED_RANGES.items(), strict=True)
    }

    def select(shape: Any, tensor: Any, parameter: Any) -> Any:
        coarse = jnp.select(
            [number == LEVELS.index("global"), number == LEVELS.index("tensor")],
            [drawn["global"], tensor],
            1.0,
        )
        fine = number == LEVELS.index("parameter")
        return jnp.where(fine, parameter, jnp.broadcast_to(coarse, shape.shape))

    return jax.tree.map(select, shapes, drawn["tensor"], drawn["parameter"])
