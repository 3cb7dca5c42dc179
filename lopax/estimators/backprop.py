"""Meta-gradients by back-propagation through inner training.

`TruncatedBackprop` differentiates each window from the state the last one left (Werbos,
1990; Andrychowicz et al., 2016, arXiv 1606.04474); `FullGradient` differentiates whole
runs from their start, which is exact and only bearable for short ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Keys, Theta
from lopax.estimators import perturb
from lopax.estimators.antithetic import start_particles, to_theta
from lopax.estimators.particles import (
    ParticleSettings,
    finish_info,
    run_chunks,
    window_sums,
)
from lopax.estimators.step import Particle
from lopax.estimators.unroll import Unroller, Window


def _chunk_gradient(
    unroller: Unroller,
    theta: Theta,
    mask: Any,
    particles: Particle,
    strata: Array,
    keys: Keys,
    length: int,
) -> tuple[Particle, Any]:
    """Gradient of the summed (over particles) mean loss of one window."""
    leaves = perturb.trainable_leaves(theta, mask)
    num = len(strata)

    def objective(leaves: list[Any]) -> tuple[Any, tuple[Particle, Window]]:
        merged = perturb.merge_leaves(theta, mask, leaves)
        thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, 1, *x.shape)), merged)
        after, window = unroller.window(thetas, particles, strata, keys, length)
        valid = jnp.maximum(jnp.sum(~window.done, axis=0), 1)
        return jnp.sum(jnp.sum(window.losses[..., 0], 0) / valid), (after, window)

    grad, (after, window) = jax.grad(objective, has_aux=True)(leaves)
    info = window_sums(window)
    return after, (grad, info)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedBackprop(Estimator):
    """See the module docstring."""

    unroller: Unroller
    settings: ParticleSettings
    truncation: int = 20

    uses_backprop = True

    def __post_init__(self) -> None:
        check_range(self, "truncation", low=1)

    def init(self, theta: Theta, key: Key) -> Particle:
        perturb.trainable_mask(theta, self.settings.trainable)
        return start_particles(self.unroller, self.settings, theta, key, 1)

    def step(
        self, theta: Theta, state: Particle, key: Key
    ) -> tuple[Theta, Particle, EstimateInfo]:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)

        def chunk(state: Particle, strata: Array, keys: Keys) -> Any:
            return _chunk_gradient(
                self.unroller, theta, mask, state, strata, keys, self.truncation
            )

        state, (grad, sums) = run_chunks(self.unroller.family, s, chunk, state, key)
        return to_theta(theta, mask, grad, s.num_particles), state, finish_info(sums)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullGradient(Estimator):
    """See the module docstring. The horizon must be fixed (low = high)."""

    unroller: Unroller
    settings: ParticleSettings

    uses_backprop = True

    def __post_init__(self) -> None:
        h = self.unroller.horizon
        if h.low != h.high:
            raise ConfigError(
                f"FullGradient needs one fixed horizon, not [{h.low}, {h.high}]: "
                "set low = high, or use TruncatedBackprop"
            )

    def init(self, theta: Theta, key: Key) -> tuple[()]:
        perturb.trainable_mask(theta, self.settings.trainable)
        del key
        return ()

    def step(
        self, theta: Theta, state: tuple[()], key: Key
    ) -> tuple[Theta, tuple[()], EstimateInfo]:
        s = self.settings
        u = self.unroller
        mask = perturb.trainable_mask(theta, s.trainable)

        def chunk(state: tuple[()], strata: Array, keys: Keys) -> Any:
            start_keys, unroll_keys = perturb.split_keys(keys)
            copies = jax.tree.map(lambda x: x[None], theta)
            particles = jax.vmap(lambda k, i: u.start(copies, k, i, False))(
                start_keys, strata
            )
            _, sums = _chunk_gradient(
                u, theta, mask, particles, strata, unroll_keys, u.horizon.high
            )
            return state, sums

        state, (grad, sums) = run_chunks(u.family, s, chunk, state, key)
        return to_theta(theta, mask, grad, s.num_particles), state, finish_info(sums)
