"""Evolution strategies with antithetic pairs: over whole unrolls, or over windows.

Salimans et al. (2017, arXiv 1703.03864); as VeLO uses them (Metz et al., 2022, arXiv
2211.09760). `FullES` runs each inner problem from start to end for every estimate and
is unbiased for the smoothed meta-loss; `TruncatedES` credits each window's losses to
that window's noise only, which is cheaper and biased towards short-term gains.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Keys, Theta
from lopax.estimators import perturb
from lopax.estimators.antithetic import Credit, WindowES, sample_noise, to_theta
from lopax.estimators.particles import ParticleSettings, finish_info, run_chunks
from lopax.estimators.unroll import Unroller


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullES(Estimator):
    """See the module docstring. Stateless: every estimate starts fresh problems.

    **Arguments:**

    - `sign`: if given, differences become their sign times this, as VeLO (1.0).
    """

    unroller: Unroller
    settings: ParticleSettings
    sigma: float = 0.01
    sign: float | None = None

    def __post_init__(self) -> None:
        check_range(self, "sigma", above=0.0)

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

        def chunk(state: tuple[()], strata: Array, keys: Keys) -> Any:
            noise_keys, unroll_keys = perturb.split_keys(keys)
            noise = sample_noise(noise_keys, leaves, self.sigma)
            pairs = perturb.antithetic(leaves, noise)
            thetas = perturb.spread(theta, mask, pairs, len(strata))
            losses, steps, diverged = self.unroller.run(thetas, strata, unroll_keys)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedES(WindowES):
    """See the module docstring; arguments as `WindowES`."""

    def start_memory(self, key: Key, leaves: list[Any]) -> list[Any]:
        del key, leaves
        return []

    def credit(self, fresh: list[Any], accumulator: list[Any]) -> Credit:
        del accumulator
        return Credit(acting=fresh, credited=fresh)
