"""Inner training, as every estimator runs it.

A particle is one inner problem trained by C copies of theta (two for evolution
strategies: theta + noise and theta - noise; one for back-propagation) that share task,
batches and initial parameters. Time is scanned on the outside and particles are
vmapped on the inside, so that the rare reset of a finished problem is a real branch
and not a select in every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lopax._core.config import check_range
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task, TaskFamily
from lopax._core.types import Count, Flag, Key, Params, Scalar, TaskState, Theta
from lopax.estimators.horizons import Horizon


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


class Window(NamedTuple):
    """What a truncation window produced, time first."""

    losses: Float[Array, "T N C"]  # weighted normalised loss before each update
    done: Bool[Array, "T N"]  # the step was spent on a reset
    diverged: Bool[Array, "T N C"]  # the loss was not finite


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
    return state, task.normalize(loss), jnp.isfinite(loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unroller:
    """Runs windows of inner steps for a batch of particles."""

    optimizer: LearnedOptimizer
    family: TaskFamily
    horizon: Horizon
    first_order: bool = False
    emphasis: float = 0.0
    """How much later losses count: a loss at fraction x of its run is weighted by
    (1 + p) x^p, which is 1 on average. 0: all alike, as published."""

    def __post_init__(self) -> None:
        check_range(self, "emphasis", low=0.0)

    def start(self, thetas: Theta, key: Key, stratum: Any, first: bool) -> Particle:
        """A fresh particle; `thetas` has leaves [C, ...].

        With `first`, the step counter starts at a random place (see `Horizon`).
        """
        k_task, k_init, k_horizon, k_step = jax.random.split(key, 4)
        config = self.family.sample(k_task, stratum)
        task = self.family.task(config)
        horizon = self.horizon.sample(k_horizon)
        inner = jax.vmap(
            lambda theta: inner_start(self.optimizer, theta, task, k_init, horizon)
        )(thetas)
        step = jnp.zeros((), jnp.int32)
        if first:
            step = self.horizon.sample_start(k_step)
        return Particle(config, inner, step, horizon)

    def window(
        self, thetas: Theta, particles: Particle, strata: Array, keys: Key, length: int
    ) -> tuple[Particle, Window]:
        """`length` steps of N particles.

        **Arguments:**

        - `thetas`: leaves [N, C, ...].
        - `particles`: leaves [N, ...].
        - `strata`: [N] int32.
        - `keys`: [N] keys; a particle's steps draw from its own key only.
        """
        num = strata.shape[0]

        def advance(thetas: Theta, particle: Particle, key: Key) -> Any:
            task = self.family.task(particle.config)
            inner, losses, finite = jax.vmap(
                lambda theta, state: inner_step(
                    self.optimizer, theta, task, state, key, self.first_order
                )
            )(thetas, particle.inner)
            return (
                particle._replace(inner=inner, step=particle.step + 1),
                losses,
                finite,
            )

        def body(particles: Particle, keys: Key) -> Any:
            done = particles.step >= particles.horizon
            weight = self._weight(particles)
            moved, losses, finite = jax.vmap(advance)(thetas, particles, keys)

            def reset(moved: Particle) -> Particle:
                fresh = jax.vmap(lambda t, k, s: self.start(t, k, s, False))(
                    thetas, keys, strata
                )

                def pick(new: Array, old: Array) -> Array:
                    flag = done.reshape((num,) + (1,) * (new.ndim - 1))
                    return jnp.where(flag, new, old)

                return jax.tree.map(pick, fresh, moved)

            particles = jax.lax.cond(jnp.any(done), reset, lambda p: p, moved)
            losses = jnp.where(done[:, None], 0.0, losses * weight[:, None])
            return particles, Window(losses, done, ~finite & ~done[:, None])

        by_time = jax.vmap(lambda k: jax.random.split(k, length), out_axes=1)(keys)
        return jax.lax.scan(body, particles, by_time)

    def _weight(self, particles: Particle) -> Float[Array, "N"]:
        if self.emphasis == 0.0:
            return jnp.ones(particles.step.shape, jnp.float32)
        done = (particles.step + 1).astype(jnp.float32) / particles.horizon
        return (1.0 + self.emphasis) * jnp.power(jnp.minimum(done, 1.0), self.emphasis)
