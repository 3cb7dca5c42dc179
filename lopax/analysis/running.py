"""Training runs that analyses look into: one compiled program, everything kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from numpy.typing import NDArray

from lopax._core import lifting
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task
from lopax._core.tree import named_leaves, split_arrays
from lopax._core.types import Params, Theta


class Moment(NamedTuple):
    """A run between two updates: all that the next one depends on."""

    params: Params
    grads: Params
    state: Any  # the optimizer's
    loss: Any  # []
    step: Any  # [] int32


class Recording(NamedTuple):
    """What an observer saw of a run."""

    losses: Float[Array, "T"]  # before each update
    scales: Float[Array, "T"]  # step scale the rule reported
    seen: Any  # the observer's results, time first


def record(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    num_steps: int,
    seed: int = 0,
    *,
    observe: Any = None,
    carry: Any = None,
) -> Recording:
    """Trains `task` for `num_steps` updates and lets `observe` look at each of them.

    **Arguments:**

    - `observe`: (moment, updates, next optimizer state, carry) -> (carry, seen); pure.
    - `carry`: what the observer begins with, given the initial parameters.
    """
    arrays, rebuild = split_arrays(task)

    @jax.jit
    def run(arrays: list[Any], theta: Theta) -> Recording:
        task = rebuild(arrays)
        k_init, k_run = jax.random.split(jax.random.key(seed))
        params, task_state = task.init(k_init)
        held = carry(params) if carry is not None else ()

        def step(current: Any, t: Any) -> Any:
            params, task_state, state, held = current
            loss, grads, task_state = task.value_and_grad(
                params, task_state, jax.random.fold_in(k_run, t)
            )
            updates, after, info = optimizer.update(
                theta, grads, state, params, value=loss
            )
            seen: Any = ()
            if observe is not None:
                moment = Moment(params, grads, state, loss, t)
                held, seen = observe(moment, updates, after, held)
            params = optax.apply_updates(params, updates)
            found = Recording(loss, info.step_scale, seen)
            return (params, task_state, after, held), found

        start = (params, task_state, optimizer.init(theta, params, num_steps), held)
        return jax.lax.scan(step, start, jnp.arange(num_steps))[1]

    return run(arrays, theta)


def moment_after(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    steps: int,
    num_steps: int,
    seed: int = 0,
) -> Moment:
    """The moment before update number `steps` of a run of `num_steps` updates."""
    arrays, rebuild = split_arrays(task)

    @jax.jit
    def run(arrays: list[Any], theta: Theta) -> Moment:
        task = rebuild(arrays)
        k_init, k_run = jax.random.split(jax.random.key(seed))
        params, task_state = task.init(k_init)

        def look(params: Params, task_state: Any, t: Any) -> Any:
            return task.value_and_grad(params, task_state, jax.random.fold_in(k_run, t))

        def step(t: Any, current: Any) -> Any:
            params, task_state, state = current
            loss, grads, task_state = look(params, task_state, t)
            updates, state, _ = optimizer.update(
                theta, grads, state, params, value=loss
            )
            return optax.apply_updates(params, updates), task_state, state

        start = (params, task_state, optimizer.init(theta, params, num_steps))
        params, task_state, state = jax.lax.fori_loop(0, steps, step, start)
        loss, grads, _ = look(params, task_state, steps)
        return Moment(params, grads, state, loss, jnp.asarray(steps))

    return run(arrays, theta)


def losses(
    optimizer: LearnedOptimizer,
    thetas: Theta,
    task: Task,
    num_steps: int,
    seeds: Sequence[int],
) -> NDArray[np.float64]:
    """Training losses [K, S, T] of K thetas (leaves [K, ...]), all on the same S
    initial parameters and batches."""
    arrays, rebuild = split_arrays(task)

    def one(arrays: list[Any], theta: Theta, seed: Any) -> Array:
        task = rebuild(arrays)
        k_init, k_run = jax.random.split(jax.random.key(seed))
        params, task_state = task.init(k_init)

        def step(current: Any, t: Any) -> Any:
            params, task_state, state = current
            loss, grads, task_state = task.value_and_grad(
                params, task_state, jax.random.fold_in(k_run, t)
            )
            updates, state, _ = optimizer.update(
                theta, grads, state, params, value=loss
            )
            return (optax.apply_updates(params, updates), task_state, state), loss

        start = (params, task_state, optimizer.init(theta, params, num_steps))
        return jax.lax.scan(step, start, jnp.arange(num_steps))[1]

    program = jax.jit(jax.vmap(one, in_axes=(None, 0, None)))
    runs = [program(arrays, thetas, np.uint32(s)) for s in seeds]
    return np.stack([np.asarray(r, np.float64) for r in runs], axis=1)


class Ratios(NamedTuple):
    """Losses of K - 1 thetas against those of the first."""

    mean: NDArray[np.float64]  # [K - 1] over the whole run; inf if not finite
    last: NDArray[np.float64]  # [K - 1] over its last tenth, likewise
    final: float  # the first one's mean loss over its last tenth


def against_first(curves: NDArray[np.float64]) -> Ratios:
    """Of `losses` [K, S, T]: means over seeds and steps."""

    def ratio(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(np.isfinite(x), x / x[0], np.inf)[1:]

    last = curves[..., -max(1, curves.shape[-1] // 10) :].mean(axis=(1, 2))
    return Ratios(ratio(curves.mean(axis=(1, 2))), ratio(last), float(last[0]))


def stack(thetas: Sequence[Theta]) -> Theta:
    """K thetas of one structure as one with leaves [K, ...]."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *thetas)


def tensor_names(task: Task) -> list[str]:
    """The names of a task's parameters, in tree order."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return list(named_leaves(params))


def as_tensors(tree: Any) -> list[Array]:
    """Leaves as the rules see them: float32, scalars of shape (1,)."""
    return [lifting.as_tensor(x) for x in jax.tree.leaves(tree)]


def cosine(a: Array, b: Array) -> Array:
    """[] cosine of the angle between two tensors; 0 if one of them is zero."""
    size = jnp.sqrt(jnp.sum(jnp.square(a)) * jnp.sum(jnp.square(b)))
    return jnp.where(size > 0, jnp.sum(a * b) / jnp.maximum(size, 2e-38), 0.0)
