"""One step of inner training: trajectories, particles, and all particles together."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task, TaskFamily
from lopax._core.types import Count, Flag, Key, Keys, Params, Scalar, TaskState, Theta


class InnerState(NamedTuple):
    """One trajectory."""

    params: Params
    task_state: TaskState
    opt_state: Any


class Particle(NamedTuple):
    """One inner problem and its C trajectories."""

    config: Any  # the task's configuration
    inner: InnerState  # each leaf [C, ...]
    step: Count  # [] int32, inner steps of the present run
    horizon: Count  # [] int32, when it ends
    least: Any = ()  # [C] the run's smallest loss so far, if the objective needs it


class Step(NamedTuple):
    """One step of N particles."""

    before: Particle  # as they were, with what was shown to them
    particles: Particle
    losses: Float[Array, "N C"]
    finite: Bool[Array, "N C"]  # whether the training loss was


def inner_start(
    optimizer: LearnedOptimizer, theta: Theta, task: Task, key: Key, horizon: Any
) -> InnerState:
    """A trajectory at its first step."""
    params, task_state = task.init(key)
    return InnerState(params, task_state, optimizer.init(theta, params, horizon))


def inner_step(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    state: InnerState,
    key: Key,
    first_order: bool = False,
) -> tuple[InnerState, Scalar, Flag]:
    """One inner update. The loss [], normalised, is that of the batch before the
    update; the flag [] says whether it was finite.

    With `first_order`, inner gradients are constants to an outer differentiation.
    """
    loss, grads, task_state = task.value_and_grad(state.params, state.task_state, key)
    if first_order:
        grads = jax.lax.stop_gradient(grads)
    updates, opt_state, _ = optimizer.update(
        theta, grads, state.opt_state, state.params, value=loss
    )
    params = optax.apply_updates(state.params, updates)
    state = InnerState(params, task_state, opt_state)
    return state, task.normalize(loss).astype(jnp.float32), jnp.isfinite(loss)


def step_all(
    optimizer: LearnedOptimizer,
    family: TaskFamily,
    thetas: Theta,
    particles: Particle,
    keys: Keys,
    first_order: bool = False,
) -> Step:
    """One inner update of N particles, `thetas` with leaves [N, C, ...]; losses are
    those of the training batches."""

    def one(thetas: Theta, particle: Particle, key: Key) -> Any:
        task = family.task(particle.config)
        return jax.vmap(
            lambda theta, state: inner_step(
                optimizer, theta, task, state, key, first_order
            )
        )(thetas, particle.inner)

    inner, losses, finite = jax.vmap(one)(thetas, particles, keys)
    moved = particles._replace(inner=inner, step=particles.step + 1)
    return Step(particles, moved, losses, finite)


def pick(flags: Bool[Array, "N"], new: Any, old: Any) -> Any:
    """Leaves [N, ...] of `new` where the flag is set, of `old` elsewhere."""

    def leaf(new: Array, old: Array) -> Array:
        return jnp.where(flags.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(leaf, new, old)
