"""One truncation window of antithetic pairs, shared by PES and truncated ES."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.types import Key, Theta
from lopax.estimators import perturb
from lopax.estimators.particles import ParticleSettings
from lopax.estimators.unroll import Particle, Unroller, Window


class PairWindow(NamedTuple):
    particles: Particle  # leaves [N, ...], after the window
    window: Window
    noise: list[Any]  # per trainable leaf [N, ...]


def start_particles(
    unroller: Unroller, settings: ParticleSettings, theta: Theta, key: Key, copies: int
) -> Particle:
    """All particles at the very start of meta-training; leaves [N, ...]."""
    theta_copies = jax.tree.map(lambda x: jnp.stack([x] * copies), theta)
    keys = jax.random.split(key, settings.num_particles)
    strata = settings.strata(unroller.family)
    return jax.vmap(lambda k, i: unroller.start(theta_copies, k, i, True))(keys, strata)


def run_pairs(
    unroller: Unroller,
    theta: Theta,
    mask: Any,
    particles: Particle,
    strata: Array,
    keys: Key,
    *,
    sigma: Any,
    length: int,
) -> PairWindow:
    """Perturbs theta afresh and runs `length` steps of every particle's pair."""
    leaves = perturb.trainable_leaves(theta, mask)
    noise_keys, unroll_keys = perturb.split_keys(keys)
    noise = jax.vmap(lambda k: perturb.sample(k, leaves, sigma))(noise_keys)
    pairs = perturb.antithetic(leaves, noise)
    theta2 = perturb.spread(theta, mask, pairs, len(strata))
    particles, window = unroller.window(theta2, particles, strata, unroll_keys, length)
    return PairWindow(particles, window, noise)


def to_theta(theta: Theta, mask: Any, sums: list[Any], num_particles: int) -> Theta:
    """Summed gradients of the trainable leaves as a mean in theta's structure, zero
    on frozen leaves; entries that are not finite become zero."""
    mean = [jnp.nan_to_num(g / num_particles, posinf=0.0, neginf=0.0) for g in sums]
    return perturb.merge_leaves(jax.tree.map(jnp.zeros_like, theta), mask, mean)
