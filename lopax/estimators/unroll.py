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
from lopax._core.errors import ConfigError
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task, TaskFamily
from lopax._core.types import Count, Flag, Key, Keys, Params, Scalar, TaskState, Theta
from lopax.estimators.flatness import Flatness
from lopax.estimators.horizons import Horizon
from lopax.estimators.objective import Objective

OBJECTIVE_STREAM, VALIDATION_STREAM, FLATNESS_STREAM = 1001, 1002, 1003
"""Folded into a step's key for batches beside the training batch."""


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


class Advance(NamedTuple):
    """One step of N particles."""

    particles: Particle
    losses: Float[Array, "N C"]  # contributions, see `Objective`
    finite: Bool[Array, "N C"]  # whether the training loss was


class Run(NamedTuple):
    """What whole runs produced."""

    losses: Float[Array, "N C"]  # meta-losses
    steps: Float[Array, "N"]  # lengths
    diverged: Scalar  # inner steps whose loss was not finite


class Window(NamedTuple):
    """What a truncation window produced, time first."""

    losses: Float[Array, "T N C"]  # contributions, see `Objective`
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
    return state, task.normalize(loss).astype(jnp.float32), jnp.isfinite(loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unroller:
    """Runs inner steps for a batch of particles: by the window, or to the end.

    Raises `ConfigError` for settings that do not go together.
    """

    optimizer: LearnedOptimizer
    family: TaskFamily
    horizon: Horizon
    objective: Objective = dataclasses.field(default_factory=Objective)
    validation_every: int = 0
    """Inner steps between two looks of the rule at the loss on a "valid" batch, the
    first before its first update; for rules that take one. 0: it never sees one."""
    first_order: bool = False
    flatness: Flatness | None = None
    """Penalty whose gradient is added at every step; see `Regularised`."""
    emphasis: float = 0.0
    """How much later losses count: a loss at fraction x of its run is weighted by
    (1 + p) x^p, which is 1 on average. 0: all alike, as published."""

    def __post_init__(self) -> None:
        check_range(self, "emphasis", low=0.0)
        check_range(self, "validation_every", low=0)
        whole = self.objective.kind == "mean"
        if not whole and (self.emphasis > 0.0 or self.horizon.averaged):
            raise ConfigError(
                f"objective {self.objective.kind!r}: emphasis and averaged horizons "
                'weigh the steps of a run and need the objective "mean"'
            )
        if self.validation_every and not self.optimizer.takes_validation:
            raise ConfigError(
                f"validation_every = {self.validation_every}: the architecture "
                f"{self.optimizer.name!r} takes no validation loss; set it to 0"
            )

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
        least: Any = ()
        if self.objective.kind == "min":
            copies = jax.tree.leaves(thetas)[0].shape[0]
            least = jnp.full((copies,), jnp.inf, jnp.float32)
        return Particle(config, inner, step, horizon, least)

    def start_all(self, thetas: Theta, keys: Keys, strata: Array, first: bool) -> Any:
        """`start` for N particles; `thetas` has leaves [N, C, ...]."""
        return jax.vmap(lambda t, k, i: self.start(t, k, i, first))(
            thetas, keys, strata
        )

    def advance(self, thetas: Theta, particles: Particle, keys: Keys) -> Advance:
        """One inner step of N particles, without resets."""
        if self.validation_every:
            particles = self._show_validation(particles, keys)

        def one(thetas: Theta, particle: Particle, key: Key) -> Any:
            task = self.family.task(particle.config)
            return jax.vmap(
                lambda theta, state: inner_step(
                    self.optimizer, theta, task, state, key, self.first_order
                )
            )(thetas, particle.inner)

        inner, losses, finite = jax.vmap(one)(thetas, particles, keys)
        moved = particles._replace(inner=inner, step=particles.step + 1)
        final = moved.step == moved.horizon
        if self.objective.looks == "always":
            losses = self.look(moved, keys)
        elif self.objective.looks == "end":
            # A branch for all particles together: under vmap it would be a select.
            losses = jax.lax.cond(
                jnp.any(final), lambda: self.look(moved, keys), lambda: losses
            )
        losses, least = self.objective.contribution(
            losses, particles.least, final, moved.horizon.astype(jnp.float32)
        )
        weight = self.horizon.weight(particles.step, particles.horizon, self.emphasis)
        losses = losses * weight[:, None]
        if self.flatness is not None:
            losses += self._only_gradient_of_flatness(moved, keys)
        return Advance(moved._replace(least=least), losses, finite)

    def window(
        self,
        thetas: Theta,
        particles: Particle,
        strata: Array,
        keys: Keys,
        length: int,
        following: Theta | None = None,
    ) -> tuple[Particle, Window]:
        """`length` steps of N particles; a problem that ends is replaced by a new one.

        **Arguments:**

        - `thetas`: leaves [N, C, ...].
        - `particles`: leaves [N, ...].
        - `strata`: [N] int32.
        - `keys`: [N] keys; a particle's steps draw from its own key only.
        - `following`: thetas of the problems that start inside the window; None: the
            same.
        """

        def body(carry: tuple[Theta | None, Particle], keys: Keys) -> Any:
            changed, particles = carry
            acting = thetas if changed is None else changed
            done = particles.step >= particles.horizon
            moved, losses, finite = self.advance(acting, particles, keys)

            def reset(moved: Particle) -> tuple[Theta | None, Particle]:
                new = None if following is None else pick(done, following, acting)
                fresh = self.start_all(
                    thetas if new is None else new, keys, strata, False
                )
                return new, pick(done, fresh, moved)

            carry = jax.lax.cond(
                jnp.any(done), reset, lambda moved: (changed, moved), moved
            )
            losses = jnp.where(done[:, None], 0.0, losses)
            return carry, Window(losses, done, ~finite & ~done[:, None])

        by_time = jax.vmap(lambda k: jax.random.split(k, length), out_axes=1)(keys)
        start = (None if following is None else thetas, particles)
        (_, particles), window = jax.lax.scan(body, start, by_time)
        return particles, window

    def run(self, thetas: Theta, strata: Array, keys: Keys) -> Run:
        """N whole runs, each from its start to its own horizon; not differentiable."""
        pairs = jax.vmap(jax.random.split)(keys)
        particles = self.start_all(thetas, pairs[:, 0], strata, False)
        zero = jnp.zeros(
            (len(strata), jax.tree.leaves(thetas)[0].shape[1]), jnp.float32
        )

        def unfinished(carry: Any) -> Array:
            particles, _, _ = carry
            return jnp.any(particles.step < particles.horizon)

        def body(carry: Any) -> Any:
            particles, total, diverged = carry
            step_keys = jax.vmap(jax.random.fold_in)(pairs[:, 1], particles.step)
            moved, losses, finite = self.advance(thetas, particles, step_keys)
            running = particles.step < particles.horizon
            after = (moved, total + losses, diverged + ~finite)
            return pick(running, after, carry)

        particles, total, diverged = jax.lax.while_loop(
            unfinished, body, (particles, zero, zero)
        )
        steps = particles.horizon.astype(jnp.float32)
        return Run(total / steps[:, None], steps, jnp.sum(diverged))

    def look(self, particles: Particle, keys: Keys) -> Float[Array, "N C"]:
        """Losses on fresh batches of the objective's split."""

        def one(particle: Particle, key: Key) -> Float[Array, "C"]:
            task = self.family.task(particle.config)
            key = jax.random.fold_in(key, OBJECTIVE_STREAM)
            return jax.vmap(
                lambda s: self.objective.look(task, s.params, s.task_state, key)
            )(particle.inner)

        return jax.vmap(one)(particles, keys)

    def _only_gradient_of_flatness(
        self, particles: Particle, keys: Keys
    ) -> Float[Array, "N C"]:
        """Zero, with the gradient of the penalty at the parameters, on a fresh batch
        of training data."""
        penalty = self.flatness
        assert penalty is not None

        def one(particle: Particle, key: Key) -> Float[Array, "C"]:
            task = self.family.task(particle.config)
            k_batch, k_loss, k_penalty = jax.random.split(
                jax.random.fold_in(key, FLATNESS_STREAM), 3
            )
            batch = task.batch(k_batch, "train")

            def copy(s: InnerState) -> Scalar:
                def loss(params: Params) -> Scalar:
                    return task.loss(params, s.task_state, k_loss, batch)[0]

                return penalty.weight * penalty(loss, s.params, k_penalty)

            return jax.vmap(copy)(particle.inner)

        values = jax.vmap(one)(particles, keys)
        return values - jax.lax.stop_gradient(values)

    def _show_validation(self, particles: Particle, keys: Keys) -> Particle:
        """Shows the rule the loss on a validation batch where it is due."""
        due = particles.step % self.validation_every == 0

        def show(particles: Particle) -> Particle:
            def one(particle: Particle, key: Key) -> InnerState:
                task = self.family.task(particle.config)
                key = jax.random.fold_in(key, VALIDATION_STREAM)

                def copy(s: InnerState) -> InnerState:
                    loss = task.evaluate(s.params, s.task_state, key, "valid")
                    if self.first_order:
                        loss = jax.lax.stop_gradient(loss)
                    seen = self.optimizer.observe_validation(s.opt_state, loss)
                    return s._replace(opt_state=seen)

                return jax.vmap(copy)(particle.inner)

            inner = jax.vmap(one)(particles, keys)
            return particles._replace(inner=pick(due, inner, particles.inner))

        return jax.lax.cond(jnp.any(due), show, lambda p: p, particles)


def pick(flags: Bool[Array, "N"], new: Any, old: Any) -> Any:
    """Leaves [N, ...] of `new` where the flag is set, of `old` elsewhere."""

    def leaf(new: Array, old: Array) -> Array:
        return jnp.where(flags.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(leaf, new, old)
