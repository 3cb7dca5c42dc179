"""Evolution strategies over truncation windows: one skeleton, several ways to credit.

Each particle trains two copies of its inner problem, with theta + noise and theta -
noise, a window at a time. What differs between estimators is only which noise acts in
a window and which noise the window's loss differences are credited to, before and
after the problem ends inside the window; `WindowES` holds everything else.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopax._core.config import check_range
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Keys, Theta
from lopax.estimators import perturb
from lopax.estimators.particles import (
    ParticleSettings,
    finish_info,
    run_chunks,
    window_sums,
)
from lopax.estimators.step import Particle
from lopax.estimators.unroll import Unroller


class PairState(NamedTuple):
    """All leaves have the particle axis first."""

    particles: Particle
    accumulator: list[Any]  # per trainable leaf [N, ...]: the estimator's memory


class Credit(NamedTuple):
    """Per trainable leaf [N, ...], for a problem that was running before the window.

    Problems that start inside the window are always perturbed by, and credited to,
    this window's fresh noise."""

    acting: list[Any]  # perturbs theta
    credited: list[Any]  # what the loss differences are multiplied with


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
        delta = sign * jnp.sign(jnp.sum(delta, axis=0, keepdims=True)) * mask
    ended = jnp.cumsum(done, axis=0) > 0
    divisor = jnp.maximum(jnp.sum(mask, axis=0), 1.0)
    before = jnp.sum(jnp.where(ended, 0.0, delta), axis=0) / divisor
    after = jnp.sum(jnp.where(ended, delta, 0.0), axis=0) / divisor
    return Weights(before, after, jnp.any(done, axis=0))


def combine(
    weights: Weights, fresh: list[Any], credited: list[Any], sigma: Any
) -> tuple[list[Any], list[Any]]:
    """Gradient summed over particles, and the noise of the problem that runs on.

    **Arguments:**

    - `fresh`: [N, ...] per leaf, this window's noise.
    - `credited`: [N, ...] per leaf, see `Credit`.
    """
    scale = 0.5 / jnp.square(sigma)

    def leaf(e: Array, c: Array) -> tuple[Array, Array]:
        grad = jnp.tensordot(weights.before, c, 1, precision="highest")
        grad += jnp.tensordot(weights.after, e, 1, precision="highest")
        flag = weights.finished.reshape((-1,) + (1,) * (e.ndim - 1))
        return scale * grad, jnp.where(flag, e, c)

    pairs = [leaf(e, c) for e, c in zip(fresh, credited, strict=True)]
    return [g for g, _ in pairs], [a for _, a in pairs]


def sample_noise(keys: Keys, leaves: list[Any], sigma: Any) -> list[Any]:
    """[N, ...] per leaf, from [N] keys."""
    return jax.vmap(lambda k: perturb.sample(k, leaves, sigma))(keys)


def start_particles(
    unroller: Unroller, settings: ParticleSettings, theta: Theta, key: Key, copies: int
) -> Particle:
    """All particles at the very start of meta-training; leaves [N, ...]."""
    theta_copies = jax.tree.map(lambda x: jnp.stack([x] * copies), theta)
    keys = jax.random.split(key, settings.num_particles)
    strata = settings.strata(unroller.family)
    return jax.vmap(lambda k, i: unroller.start(theta_copies, k, i, True))(keys, strata)


def to_theta(theta: Theta, mask: Any, sums: list[Any], num_particles: int) -> Theta:
    """Summed gradients of the trainable leaves as a mean in theta's structure, zero
    on frozen leaves; entries that are not finite become zero."""
    mean = [jnp.nan_to_num(g / num_particles, posinf=0.0, neginf=0.0) for g in sums]
    return perturb.merge_leaves(jax.tree.map(jnp.zeros_like, theta), mask, mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowES(Estimator):
    """See the module docstring.

    **Arguments:**

    - `unroller`: optimizer, task family, horizons and objective.
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

    @abc.abstractmethod
    def start_memory(self, key: Key, leaves: list[Any]) -> list[Any]:
        """The accumulator [N, ...] per leaf before the first window; [] if none."""

    @abc.abstractmethod
    def credit(self, fresh: list[Any], accumulator: list[Any]) -> Credit:
        """What acts in a window and what is credited; see `Credit`."""

    def init(self, theta: Theta, key: Key) -> PairState:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)
        memory = self.start_memory(
            jax.random.fold_in(key, s.num_particles),
            perturb.trainable_leaves(theta, mask),
        )
        return PairState(start_particles(self.unroller, s, theta, key, 2), memory)

    def step(
        self, theta: Theta, state: PairState, key: Key
    ) -> tuple[Theta, PairState, EstimateInfo]:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)
        leaves = perturb.trainable_leaves(theta, mask)

        def chunk(state: PairState, strata: Array, keys: Keys) -> Any:
            noise_keys, unroll_keys = perturb.split_keys(keys)
            fresh = sample_noise(noise_keys, leaves, self.sigma)
            acting, credited = self.credit(fresh, state.accumulator)

            def perturbed(noise: list[Any]) -> Theta:
                pairs = perturb.antithetic(leaves, noise)
                return perturb.spread(theta, mask, pairs, len(strata))

            particles, window = self.unroller.window(
                perturbed(acting),
                state.particles,
                strata,
                unroll_keys,
                self.truncation,
                following=None if acting is fresh else perturbed(fresh),
            )
            weights = difference_weights(window.losses, window.done, self.sign)
            grad, memory = combine(weights, fresh, credited, self.sigma)
            if not state.accumulator:
                memory = []
            return PairState(particles, memory), (grad, window_sums(window))

        state, (grad, sums) = run_chunks(self.unroller.family, s, chunk, state, key)
        return to_theta(theta, mask, grad, s.num_particles), state, finish_info(sums)
