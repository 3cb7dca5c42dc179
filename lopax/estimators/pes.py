"""Persistent evolution strategies: unbiased gradients from truncated unrolls.

Vicol, Metz and Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation
Graphs with Persistent Evolution Strategies" (2021, arXiv 2112.13835), with staggered
log-uniform horizons per particle as used to meta-train Celo (Moudgil et al., 2025,
arXiv 2501.12670). Each particle remembers the sum of the noise applied since its
inner problem started; the loss differences of a window are credited to that sum.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopax._core.config import check_range
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Theta
from lopax.estimators import perturb
from lopax.estimators.antithetic import run_pairs, start_particles, to_theta
from lopax.estimators.particles import (
    ParticleSettings,
    finish_info,
    run_chunks,
    window_sums,
)
from lopax.estimators.unroll import Particle, Unroller


class PESState(NamedTuple):
    """All leaves have the particle axis first."""

    particles: Particle
    accumulator: list[Any]  # per trainable leaf [N, ...]: noise since the last reset


class Weights(NamedTuple):
    """How a window's losses weigh noise, per particle."""

    before: Float[Array, "N"]  # mean difference until the problem ended
    after: Float[Array, "N"]  # mean difference of the problem started after that
    finished: Bool[Array, "N"]


def difference_weights(
    losses: Float[Array, "T N 2"], done: Bool[Array, "T N"], sign: float | None = None
) -> Weights:
    """Splits the mean antithetic loss difference at the first reset of each particle.

    Reset steps carry no loss and are not counted in the mean's divisor, which is the
    number of valid steps of the whole window for both parts. Non-finite differences
    count as zero.

    **Arguments:**

    - `sign`: if given, every valid step's difference is replaced by this times the
        sign of the particle's mean difference.
    """
    mask = 1.0 - done.astype(jnp.float32)
    raw = (losses[..., 0] - losses[..., 1]) * mask
    delta = jnp.where(jnp.isfinite(raw), raw, 0.0)
    if sign is not None:
        delta = sign * jnp.sign(jnp.sum(delta, axis=0)) * mask
    ended = jnp.cumsum(done, axis=0) > 0
    divisor = jnp.maximum(jnp.sum(mask, axis=0), 1.0)
    before = jnp.sum(jnp.where(ended, 0.0, delta), axis=0) / divisor
    after = jnp.sum(jnp.where(ended, delta, 0.0), axis=0) / divisor
    return Weights(before, after, jnp.any(done, axis=0))


def combine(
    weights: Weights, noise: list[Any], accumulator: list[Any], sigma: Any
) -> tuple[list[Any], list[Any]]:
    """Gradient summed over particles, and the next accumulator.

    **Arguments:**

    - `noise`: [N, ...] per leaf, this window's.
    - `accumulator`: [N, ...] per leaf, before this window.
    """
    scale = 0.5 / jnp.square(sigma)

    def leaf(e: Array, a: Array) -> tuple[Array, Array]:
        total = a + e
        grad = jnp.tensordot(weights.before, total, 1, precision="highest")
        grad += jnp.tensordot(weights.after, e, 1, precision="highest")
        flag = weights.finished.reshape((-1,) + (1,) * (e.ndim - 1))
        return scale * grad, jnp.where(flag, e, total)

    pairs = [leaf(e, a) for e, a in zip(noise, accumulator, strict=True)]
    return [g for g, _ in pairs], [a for _, a in pairs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PES(Estimator):
    """See the module docstring.

    **Arguments:**

    - `unroller`: optimizer, task family and horizons.
    - `settings`: number of particles, trainable patterns, chunking.
    - `truncation`: inner steps per estimate.
    - `sigma`: standard deviation of the perturbations.
    - `sign`: see `difference_weights`.
    """

    unroller: Unroller
    settings: ParticleSettings
    truncation: int = 50
    sigma: float = 0.01
    sign: float | None = None

    def __post_init__(self) -> None:
        check_range(self, "truncation", low=1)
        check_range(self, "sigma", above=0.0)

    def init(self, theta: Theta, key: Key) -> PESState:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)
        leaves = perturb.trainable_leaves(theta, mask)
        zeros = [jnp.zeros((s.num_particles, *x.shape), jnp.float32) for x in leaves]
        return PESState(start_particles(self.unroller, s, theta, key, 2), zeros)

    def step(
        self, theta: Theta, state: PESState, key: Key
    ) -> tuple[Theta, PESState, EstimateInfo]:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)

        def chunk(state: PESState, strata: Array, keys: Key) -> Any:
            particles, window, noise = run_pairs(
                self.unroller,
                theta,
                mask,
                state.particles,
                strata,
                keys,
                sigma=self.sigma,
                length=self.truncation,
            )
            weights = difference_weights(window.losses, window.done, self.sign)
            grad, accumulator = combine(weights, noise, state.accumulator, self.sigma)
            return PESState(particles, accumulator), (grad, window_sums(window))

        state, (grad, sums) = run_chunks(self.unroller.family, s, chunk, state, key)
        grad = to_theta(theta, mask, grad, s.num_particles)
        return grad, state, finish_info(sums)
