"""Small problems that an optimizer either solves or does not.

Each isolates one difficulty: curvature, saddles, noise, sparse gradients, losses that
explode, scales, changes in mid-run, short and long horizons, one broken gradient. All
losses are positive and start near a known value, so that "solved" is a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.task import Task
from lopax._core.types import Batch, Count, Key, Params, Scalar, TaskState

FLOOR = 1e-6
"""Added to every loss, so that ratios of losses stay meaningful at the solution."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StressProblem(Task):
    """A loss of the parameters, the update count and a key; it has no data.

    The task state is the number of updates made, [] int32.
    """

    start: Callable[[Key], Params] = dataclasses.field(metadata={"static": True})
    objective: Callable[[Any, Count, Key], Scalar] = dataclasses.field(
        metadata={"static": True}
    )

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return self.start(key), jnp.zeros((), jnp.int32)

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        del batch
        return self.objective(params, task_state, key) + FLOOR, task_state + 1


def _normal(*shape: int, scale: float = 1.0) -> Callable[[Key], Params]:
    return lambda key: {"x": scale * jax.random.normal(key, shape)}


def quadratic(
    condition: float = 1.0,
    loss_scale: float = 1.0,
    parameter_scale: float = 1.0,
    size: int = 20,
) -> StressProblem:
    """mean(c x^2) with curvatures c from 1 to 1 / condition; starts near loss 1."""
    curvature = jnp.geomspace(1.0, 1.0 / condition, size)
    curvature = curvature / jnp.mean(curvature)

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count, key
        x = params["x"] / parameter_scale
        return loss_scale * jnp.mean(curvature * x**2)

    return StressProblem(
        start=_normal(size, scale=parameter_scale), objective=objective
    )


def rosenbrock() -> StressProblem:
    """The curved valley in two dimensions from (-1.2, 1), where the loss is 24.2."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count, key
        x, y = params["x"][0], params["x"][1]
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    return StressProblem(
        start=lambda key: {
            "x": jnp.array([-1.2, 1.0]) + 0.01 * jax.random.normal(key, (2,))
        },
        objective=objective,
    )


def saddle() -> StressProblem:
    """mean((x^2 - 1)^2) from a thousandth beside the saddle at 0, where it is 1."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count, key
        return jnp.mean((params["x"] ** 2 - 1) ** 2)

    return StressProblem(start=_normal(10, scale=1e-3), objective=objective)


def plateau() -> StressProblem:
    """1 - exp(-mean(x^2) / 2) from x = 3, where the gradient is a hundredth."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count, key
        return 1 - jnp.exp(-0.5 * jnp.mean(params["x"] ** 2))

    return StressProblem(
        start=lambda key: {"x": 3 + 0.1 * jax.random.normal(key, (10,))},
        objective=objective,
    )


def heavy_tailed() -> StressProblem:
    """mean(w x^2) with weights w drawn anew each step, most near 0, some huge."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count
        x = params["x"]
        w = jnp.exp(2.5 * jax.random.normal(key, x.shape) - 0.5 * 2.5**2)
        return jnp.mean(w * x**2)

    return StressProblem(start=_normal(50), objective=objective)


def sparse(size: int = 64) -> StressProblem:
    """Each step shows one of `size` coordinates; the others have gradient zero."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count
        index = jax.random.randint(key, (), 0, size)
        shown = jax.nn.one_hot(index, size)
        return jnp.sum(shown * (params["x"] - 1.0) ** 2)

    return StressProblem(start=_normal(size, scale=0.01), objective=objective)


def exploding() -> StressProblem:
    """mean(x^4) from x near 10: the first gradient is thousands."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count, key
        return jnp.mean(params["x"] ** 4)

    return StressProblem(
        start=lambda key: {"x": 10 + jax.random.normal(key, (10,))},
        objective=objective,
    )


def jump(at: int) -> StressProblem:
    """A quadratic whose minimum moves from 0 to 1 after `at` updates."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del key
        target = jnp.where(count < at, 0.0, 1.0)
        return jnp.mean((params["x"] - target) ** 2)

    return StressProblem(start=_normal(10), objective=objective)


def one_bad_gradient(at: int) -> StressProblem:
    """A quadratic whose loss and gradient are NaN in one single step."""

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del key
        return jnp.mean(params["x"] ** 2) * jnp.where(count == at, jnp.nan, 1.0)

    return StressProblem(start=_normal(10), objective=objective)


def deep_linear(depth: int = 6, width: int = 8) -> StressProblem:
    """A product of `depth` matrices that should become the identity; near 0 at first,
    every gradient is a product of small matrices."""

    def start(key: Key) -> Params:
        keys = jax.random.split(key, depth)
        scale = 0.5 / width**0.5
        return {
            f"w{i}": scale * jax.random.normal(k, (width, width))
            for i, k in enumerate(keys)
        }

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count, key
        product = jnp.eye(width)
        for i in range(depth):
            product = product @ params[f"w{i}"]
        return jnp.sum((product - jnp.eye(width)) ** 2) / width

    return StressProblem(start=start, objective=objective)


def regression(batch: int, size: int = 16) -> StressProblem:
    """Linear regression without label noise on fresh batches of `batch` examples."""
    truth = jnp.sin(1.0 + jnp.arange(size))

    def objective(params: Any, count: Count, key: Key) -> Scalar:
        del count
        inputs = jax.random.normal(key, (batch, size))
        return jnp.mean((inputs @ (params["x"] - truth)) ** 2) / size

    return StressProblem(start=_normal(size, scale=0.01), objective=objective)
