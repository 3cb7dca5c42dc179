"""What looks at inner training, or weighs it, step by step.

An observer is given N particles before their step, or what the step made of them; it
may show the particles something, or change the losses that are contributed to the
meta-loss. It draws from a stream of its own beside a step's training batch.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import TaskFamily
from lopax._core.types import Key, Keys, Params, Scalar
from lopax.estimators.flatness import Flatness
from lopax.estimators.horizons import Horizon
from lopax.estimators.objective import Objective
from lopax.estimators.step import InnerState, Particle, Step, pick

OBJECTIVE_STREAM, VALIDATION_STREAM, FLATNESS_STREAM = 1001, 1002, 1003
"""Folded into a step's key for batches beside the training batch."""


class Observer:
    """Does nothing; see the module docstring."""

    def before(self, particles: Particle, keys: Keys) -> Particle:
        """The particles that will step."""
        del keys
        return particles

    def after(self, step: Step, keys: Keys) -> Step:
        """The step, with other losses."""
        del keys
        return step


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowValidation(Observer):
    """Shows the rule the loss on a "valid" batch, every `every` steps of a run."""

    optimizer: LearnedOptimizer
    family: TaskFamily
    every: int
    first_order: bool = False

    def before(self, particles: Particle, keys: Keys) -> Particle:
        due = particles.step % self.every == 0

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contribute(Observer):
    """Turns training losses into contributions to the objective."""

    family: TaskFamily
    objective: Objective

    def after(self, step: Step, keys: Keys) -> Step:
        moved, losses = step.particles, step.losses
        final = moved.step == moved.horizon
        if self.objective.looks == "always":
            losses = self.look(moved, keys)
        elif self.objective.looks == "end":
            # A branch for all particles together: under vmap it would be a select.
            losses = jax.lax.cond(
                jnp.any(final), lambda: self.look(moved, keys), lambda: losses
            )
        losses, least = self.objective.contribution(
            losses, step.before.least, final, moved.horizon.astype(jnp.float32)
        )
        return step._replace(particles=moved._replace(least=least), losses=losses)

    def look(self, particles: Particle, keys: Keys) -> Float[Array, "N C"]:
        """Losses on fresh batches of the objective's split."""

        def one(particle: Particle, key: Key) -> Float[Array, "C"]:
            task = self.family.task(particle.config)
            key = jax.random.fold_in(key, OBJECTIVE_STREAM)
            return jax.vmap(
                lambda s: self.objective.look(task, s.params, s.task_state, key)
            )(particle.inner)

        return jax.vmap(one)(particles, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weigh(Observer):
    """Weighs contributions by where in its run a step is; see `Horizon.weight`."""

    horizon: Horizon
    emphasis: float

    def after(self, step: Step, keys: Keys) -> Step:
        old = step.before
        weight = self.horizon.weight(old.step, old.horizon, self.emphasis)
        return step._replace(losses=step.losses * weight[:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalise(Observer):
    """Adds zero, with the gradient of the penalty at the parameters, on a fresh batch
    of training data."""

    family: TaskFamily
    flatness: Flatness

    def after(self, step: Step, keys: Keys) -> Step:
        def one(particle: Particle, key: Key) -> Float[Array, "C"]:
            task = self.family.task(particle.config)
            k_batch, k_loss, k_penalty = jax.random.split(
                jax.random.fold_in(key, FLATNESS_STREAM), 3
            )
            batch = task.batch(k_batch, "train")

            def copy(s: InnerState) -> Scalar:
                def loss(params: Params) -> Scalar:
                    return task.loss(params, s.task_state, k_loss, batch)[0]

                return self.flatness.weight * self.flatness(loss, s.params, k_penalty)

            return jax.vmap(copy)(particle.inner)

        old = step.before
        due = old.step >= self.flatness.start * old.horizon
        values = jnp.where(due[:, None], jax.vmap(one)(step.particles, keys), 0.0)
        return step._replace(
            losses=step.losses + (values - jax.lax.stop_gradient(values))
        )
