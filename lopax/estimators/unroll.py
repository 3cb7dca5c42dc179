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
from jaxtyping import Array, Bool, Float

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import TaskFamily
from lopax._core.types import Key, Keys, Scalar, Theta
from lopax.estimators.flatness import Flatness
from lopax.estimators.horizons import Horizon
from lopax.estimators.objective import Objective
from lopax.estimators.observers import (
    Contribute,
    Observer,
    Penalise,
    ShowValidation,
    Weigh,
)
from lopax.estimators.step import Particle, Step, inner_start, pick, step_all


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

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What its settings ask for, in the order in which it is done."""
        family = self.family
        chosen: list[Observer] = []
        if self.validation_every:
            chosen.append(
                ShowValidation(
                    optimizer=self.optimizer,
                    family=family,
                    every=self.validation_every,
                    first_order=self.first_order,
                )
            )
        chosen.append(Contribute(family=family, objective=self.objective))
        chosen.append(Weigh(horizon=self.horizon, emphasis=self.emphasis))
        if self.flatness is not None:
            chosen.append(Penalise(family=family, flatness=self.flatness))
        return tuple(chosen)

    def advance(self, thetas: Theta, particles: Particle, keys: Keys) -> Step:
        """One inner step of N particles, without resets; losses are contributions, see
        `Objective`."""
        observers = self.observers
        for observer in observers:
            particles = observer.before(particles, keys)
        step = step_all(
            self.optimizer, self.family, thetas, particles, keys, self.first_order
        )
        for observer in observers:
            step = observer.after(step, keys)
        return step

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
            _, moved, losses, finite = self.advance(acting, particles, keys)

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
            _, moved, losses, finite = self.advance(thetas, particles, step_keys)
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
        return Contribute(family=self.family, objective=self.objective).look(
            particles, keys
        )
