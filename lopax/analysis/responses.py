"""What a rule does with one gradient, and with everything rescaled. Any architecture.

`gradient_response` stops a training run, changes the gradient of one element and looks
how that element's step changes: the update function of a rule whose state is too large
to be listed. `invariances` replays a run with all gradients, parameters or losses
multiplied by a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task
from lopax._core.types import Theta
from lopax.analysis import running
from lopax.analysis.running import Moment


class GradientResponse(NamedTuple):
    """Steps of E elements of one tensor for G values of their own gradient."""

    tensor: str
    gradients: NDArray[np.float64]  # [G] in units of the tensor's gradient RMS
    updates: NDArray[np.float64]  # [E, G] in units of the tensor's update RMS

    def change(self) -> NDArray[np.float64]:
        """[G] mean over elements of the step minus the step without a gradient."""
        zero = int(np.argmin(np.abs(self.gradients)))
        return (self.updates - self.updates[:, [zero]]).mean(axis=0)

    def flattening(self, near: float = 10.0, far: float = 30.0) -> float:
        """|change(far)| / |change(near)| over both signs: far / near if linear, one
        if large gradients are clipped, below one if they are distrusted."""
        change = self.change()

        def size(at: float) -> float:
            return float(np.mean(np.abs(np.interp([at, -at], self.gradients, change))))

        return size(far) / max(size(near), 1e-30)


def gradient_response(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    *,
    num_steps: int = 300,
    at: float = 0.5,
    seed: int = 0,
    elements: int = 8,
    gradients: Sequence[float] = tuple(np.linspace(-30.0, 30.0, 61)),
) -> GradientResponse:
    """Stops a run of `num_steps` at fraction `at` and varies single gradients.

    The elements are spread over the task's largest tensor.
    """
    moment = running.moment_after(
        optimizer, theta, task, int(at * num_steps), num_steps, seed
    )
    leaves, treedef = jax.tree.flatten(moment.grads)
    which = int(np.argmax([x.size for x in leaves]))
    size = leaves[which].size
    chosen = np.unique(np.linspace(0, size - 1, min(elements, size)).astype(np.int32))
    grid = jnp.asarray(gradients, jnp.float32)

    @jax.jit
    def updates(theta: Theta, moment: Moment, element: Array) -> tuple[Array, Array]:
        leaves = jax.tree.leaves(moment.grads)
        unit = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(leaves[which]))), 1e-20)

        def one(g: Array) -> Array:
            flat = leaves[which].ravel().at[element].set(g * unit)
            changed = [*leaves]
            changed[which] = flat.reshape(leaves[which].shape)
            moved, _, _ = optimizer.update(
                theta,
                treedef.unflatten(changed),
                moment.state,
                moment.params,
                value=moment.loss,
            )
            return jax.tree.leaves(moved)[which].ravel()[element]

        moved, _, _ = optimizer.update(
            theta, moment.grads, moment.state, moment.params, value=moment.loss
        )
        own = jnp.sqrt(jnp.mean(jnp.square(jax.tree.leaves(moved)[which])))
        return jax.lax.map(one, grid), own

    found = [updates(theta, moment, jnp.asarray(e)) for e in chosen]
    table = np.stack([np.asarray(u / jnp.maximum(own, 1e-30)) for u, own in found])
    return GradientResponse(
        running.tensor_names(task)[which],
        np.asarray(gradients, np.float64),
        table.astype(np.float64),
    )


class Invariances(NamedTuple):
    """A replayed run with something multiplied by each of C factors."""

    factors: NDArray[np.float64]  # [C]
    sizes: dict[str, NDArray[np.float64]]  # "gradients" -> [C] update RMS / unscaled
    cosines: dict[str, NDArray[np.float64]]  # -> [C] with the unscaled update

    def exponent(self, what: str) -> float:
        """k if the update grows as factor^k (least squares in the logarithms); 0 for
        an invariant rule, 1 for a proportional one."""
        ok = self.sizes[what] > 0
        x, y = np.log(self.factors[ok]), np.log(self.sizes[what][ok])
        return float(np.sum(x * y) / np.sum(x * x))


SCALED = ("gradients", "parameters", "loss")


def invariances(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    *,
    num_steps: int = 300,
    replayed: int = 50,
    seed: int = 0,
    factors: Sequence[float] = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3),
) -> Invariances:
    """Replays the first `replayed` steps of a run of `num_steps` and compares the last
    update, all tensors together. What is not rescaled is as in the original run."""

    def observe(moment: Moment, updates: Any, after: Any, carry: Any) -> Any:
        return carry, (moment.grads, moment.params, moment.loss)

    run = running.record(
        optimizer, theta, task, min(replayed, num_steps), seed, observe=observe
    )
    given = run.seen

    @jax.jit
    def last_update(theta: Theta, factor: Array, given: Any) -> Array:
        """[elements]; `factor` [3] in the order of `SCALED`."""
        grads, params, loss = (
            jax.tree.map(lambda x, f=f: x * f, part)
            for part, f in zip(given, factor, strict=True)
        )
        first = jax.tree.map(lambda x: x[0], params)

        def step(carry: Any, now: Any) -> Any:
            state, _ = carry
            grads, params, loss = now
            updates, state, _ = optimizer.update(
                theta, grads, state, params, value=loss
            )
            return (state, updates), None

        start = optimizer.init(theta, first, num_steps)
        zeros = jax.tree.map(jnp.zeros_like, first)
        (_, updates), _ = jax.lax.scan(step, (start, zeros), (grads, params, loss))
        return jnp.concatenate([u.ravel() for u in jax.tree.leaves(updates)])

    base = np.asarray(last_update(theta, jnp.ones(3), given), np.float64)
    size = np.linalg.norm(base)
    sizes: dict[str, Any] = {name: [] for name in SCALED}
    cosines: dict[str, Any] = {name: [] for name in SCALED}
    for i, name in enumerate(SCALED):
        for factor in factors:
            scaled = jnp.ones(3).at[i].set(factor)
            update = np.asarray(last_update(theta, scaled, given), np.float64)
            norm = np.linalg.norm(update)
            sizes[name].append(norm / max(size, 1e-300))
            cosines[name].append(update @ base / max(norm * size, 1e-300))
    return Invariances(
        np.asarray(factors, np.float64),
        {k: np.asarray(v) for k, v in sizes.items()},
        {k: np.asarray(v) for k, v in cosines.items()},
    )
