"""Evolution strategies with antithetic pairs: over whole unrolls, or over windows.

Salimans et al. (2017, arXiv 1703.03864); as VeLO uses them (Metz et al., 2022, arXiv
2211.09760). `FullES` runs each inner problem from start to end for every estimate and
is unbiased for the smoothed meta-loss; `TruncatedES` credits each window's losses to
that window's noise only, which is cheaper and biased towards short-term gains.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import tree as trees
from lopax._core.config import check_choice, check_range
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Scalar, Theta
from lopax.estimators import perturb
from lopax.estimators.antithetic import run_pairs, start_particles, to_theta
from lopax.estimators.particles import (
    ParticleSettings,
    finish_info,
    run_chunks,
    window_sums,
)
from lopax.estimators.unroll import InnerState, Particle, Unroller, inner_step

OBJECTIVES = ("mean", "last", "min", "last_recompute")


def pair_gradient(
    pair_losses: Float[Array, "N 2"], noise: list[Any], sigma: Any, sign: float | None
) -> list[Any]:
    """sum over N of noise (L+ - L-) / (2 sigma^2); non-finite differences are zero."""
    raw = pair_losses[:, 0] - pair_losses[:, 1]
    delta = jnp.where(jnp.isfinite(raw), raw, 0.0)
    if sign is not None:
        delta = sign * jnp.sign(delta)
    scale = 0.5 / jnp.square(sigma)
    return [scale * jnp.tensordot(delta, e, 1, precision="highest") for e in noise]


class Progress(NamedTuple):
    """A full unroll under way; leaves [N, ...]."""

    particle: Particle
    total: Float[Array, "N 2"]
    last: Float[Array, "N 2"]
    least: Float[Array, "N 2"]
    diverged: Float[Array, "N 2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullES(Estimator):
    """See the module docstring. Stateless: every estimate starts fresh problems.

    **Arguments:**

    - `objective`: the meta-loss of an unroll. "mean": over its steps; "last", "min":
        of its training losses; "last_recompute": mean over `recompute` fresh batches
        at the final parameters, as VeLO.
    - `sign`: if given, differences become their sign times this, as VeLO (1.0).
    """

    unroller: Unroller
    settings: ParticleSettings
    sigma: float = 0.01
    objective: str = "mean"
    recompute: int = 10
    sign: float | None = None

    def __post_init__(self) -> None:
        check_range(self, "sigma", above=0.0)
        check_choice(self, "objective", OBJECTIVES)
        check_range(self, "recompute", low=1)

    def init(self, theta: Theta, key: Key) -> tuple[()]:
        perturb.trainable_mask(theta, self.settings.trainable)
        del key
        return ()

    def step(
        self, theta: Theta, state: tuple[()], key: Key
    ) -> tuple[Theta, tuple[()], EstimateInfo]:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)
        leaves = perturb.trainable_leaves(theta, mask)

        def chunk(state: tuple[()], strata: Array, keys: Key) -> Any:
            noise_keys, unroll_keys = perturb.split_keys(keys)
            noise = jax.vmap(lambda k: perturb.sample(k, leaves, self.sigma))(
                noise_keys
            )
            pairs = perturb.antithetic(leaves, noise)
            thetas = perturb.spread(theta, mask, pairs, len(strata))
            losses, steps, diverged = self._unroll(thetas, strata, unroll_keys)
            grad = pair_gradient(losses, noise, self.sigma, self.sign)
            info = EstimateInfo(
                loss=jnp.sum(jnp.mean(losses, axis=1) * 2.0 * steps),
                inner_steps=2.0 * jnp.sum(steps),
                finished=jnp.asarray(float(len(strata))),
                diverged=diverged,
            )
            return state, (grad, info)

        state, (grad, sums) = run_chunks(self.unroller.family, s, chunk, state, key)
        return to_theta(theta, mask, grad, s.num_particles), state, finish_info(sums)

    def _unroll(
        self, thetas: Theta, strata: Array, keys: Key
    ) -> tuple[Float[Array, "N 2"], Float[Array, "N"], Scalar]:
        """Meta-losses [N, 2] and lengths [N] of whole runs, and how many of their
        steps had a loss that was not finite."""
        u = self.unroller
        pairs = jax.vmap(jax.random.split)(keys)
        particles = jax.vmap(lambda t, k, i: u.start(t, k, i, False))(
            thetas, pairs[:, 0], strata
        )
        zero = jnp.zeros((len(strata), 2), jnp.float32)

        def one(thetas: Theta, p: Progress, key: Key) -> Progress:
            task = u.family.task(p.particle.config)
            step_key = jax.random.fold_in(key, p.particle.step)

            def copy(theta: Theta, inner: InnerState) -> Any:
                return inner_step(u.optimizer, theta, task, inner, step_key)

            inner, losses, finite = jax.vmap(copy)(thetas, p.particle.inner)
            running = p.particle.step < p.particle.horizon
            moved = Progress(
                p.particle._replace(inner=inner, step=p.particle.step + 1),
                p.total + losses,
                losses,
                jnp.minimum(p.least, losses),
                p.diverged + ~finite,
            )
            return trees.select(running, moved, p)

        def unfinished(p: Progress) -> Array:
            return jnp.any(p.particle.step < p.particle.horizon)

        start = Progress(particles, zero, zero, zero + jnp.inf, zero)
        end = jax.lax.while_loop(
            unfinished, lambda p: jax.vmap(one)(thetas, p, pairs[:, 1]), start
        )
        steps = end.particle.horizon.astype(jnp.float32)
        losses = {
            "mean": lambda: end.total / steps[:, None],
            "last": lambda: end.last,
            "min": lambda: end.least,
            "last_recompute": lambda: jax.vmap(self._recompute)(
                end.particle, pairs[:, 1]
            ),
        }[self.objective]()
        return losses, steps, jnp.sum(end.diverged)

    def _recompute(self, particle: Particle, key: Key) -> Float[Array, "2"]:
        task = self.unroller.family.task(particle.config)
        keys = jax.random.split(jax.random.fold_in(key, -1), self.recompute)

        def copy(inner: InnerState) -> Any:
            losses = jax.vmap(
                lambda k: task.evaluate(inner.params, inner.task_state, k, "train")
            )(keys)
            return task.normalize(jnp.mean(losses))

        return jax.vmap(copy)(particle.inner)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedES(Estimator):
    """See the module docstring. Its state is the running inner problems."""

    unroller: Unroller
    settings: ParticleSettings
    truncation: int = 50
    sigma: float = 0.01
    sign: float | None = None

    def __post_init__(self) -> None:
        check_range(self, "truncation", low=1)
        check_range(self, "sigma", above=0.0)

    def init(self, theta: Theta, key: Key) -> Particle:
        perturb.trainable_mask(theta, self.settings.trainable)
        return start_particles(self.unroller, self.settings, theta, key, 2)

    def step(
        self, theta: Theta, state: Particle, key: Key
    ) -> tuple[Theta, Particle, EstimateInfo]:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)

        def chunk(state: Particle, strata: Array, keys: Key) -> Any:
            particles, window, noise = run_pairs(
                self.unroller,
                theta,
                mask,
                state,
                strata,
                keys,
                sigma=self.sigma,
                length=self.truncation,
            )
            valid = jnp.maximum(jnp.sum(~window.done, axis=0), 1)
            means = jnp.sum(window.losses, axis=0) / valid[:, None]
            grad = pair_gradient(means, noise, self.sigma, self.sign)
            return particles, (grad, window_sums(window))

        state, (grad, sums) = run_chunks(self.unroller.family, s, chunk, state, key)
        return to_theta(theta, mask, grad, s.num_particles), state, finish_info(sums)
