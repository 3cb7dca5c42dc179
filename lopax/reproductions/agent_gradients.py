"""What gradients of agents a meta-training sees, outer step by outer step.

The reason Lan et al. (2023, arXiv 2302.01470) give for staggered resets: gradients of
an agent change by orders of magnitude over its life, and with all agents of one age so
does what the rule is shown.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from lopax import meta
from lopax._core.types import Key, Theta
from lopax.architectures import architecture
from lopax.estimators import PipelineBackprop
from lopax.estimators.step import Particle
from lopax.meta.trainer import build_estimator

LOW, HIGH, WIDTH = -8.0, 2.0, 0.25
"""Of the bins of log10 |gradient|; what is outside falls into the outermost."""
BINS = round((HIGH - LOW) / WIDTH)


class Seen(NamedTuple):
    """Distributions of log10 |gradient| over agents and parameters."""

    shares: NDArray[np.float64]
    """[windows, 1 + BINS], rows of sum 1; the first column is of gradients of zero."""

    @property
    def centre(self) -> NDArray[np.float64]:
        """[windows] mean of log10 |gradient| where it is not zero."""
        return _moment(self.shares, 0.0, 1)

    @property
    def spread(self) -> NDArray[np.float64]:
        """[windows] standard deviation of the same, within a window."""
        return np.sqrt(_moment(self.shares, self.centre[:, None], 2))

    def of_life(self, windows: int) -> NDArray[np.float64]:
        """[1 + BINS] the mean distribution of the first windows."""
        return self.shares[:windows].mean(axis=0)

    def from_whole(self, whole: NDArray[np.float64]) -> NDArray[np.float64]:
        """[windows] nats of Kullback-Leibler divergence from `whole`."""
        return divergence(self.shares, whole)

    @property
    def from_last(self) -> NDArray[np.float64]:
        """[windows - 1] the same, of each window from the one before it."""
        return divergence(self.shares[1:], self.shares[:-1])


def divergence(p: Any, q: Any, floor: float = 1e-6) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of the last axis in nats; shares below `floor` count
    as that."""
    p, q = (np.maximum(np.asarray(x, np.float64), floor) for x in (p, q))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    return np.sum(p * np.log(p / q), axis=-1)


def seen(run: meta.RunConfig, theta: Theta, windows: int, key: Key) -> Seen:
    """Agents as `run` resets them, trained by a rule that does not change.

    **Arguments:**

    - `run`: with the estimator "pipeline_backprop" and one group of agents.
    - `theta`: of the rule; nothing is meta-trained.
    - `windows`: how many outer steps to watch.
    """
    rule = architecture(run.architecture, **run.settings)
    families = meta.build_families(run.tasks)
    estimator = build_estimator(run.estimator, rule, families, ("*",))
    assert isinstance(estimator, PipelineBackprop)
    family = families[0]

    def shares(particles: Particle, key: Key) -> Float[Array, "bins"]:
        def gradient(particle: Particle, key: Key) -> Array:
            task = family.task(particle.config)
            inner = jax.tree.map(lambda x: x[0], particle.inner)

            def loss(params: Any) -> Array:
                batch = task.batch(key, "train")
                return task.loss(params, inner.task_state, key, batch)[0]

            grads = jax.tree.leaves(jax.grad(loss)(inner.params))
            return jnp.concatenate([jnp.ravel(g) for g in grads])

        keys = jax.random.split(key, particles.step.shape[0])
        return histogram(jax.vmap(gradient)(particles, keys))

    @jax.jit
    def watch(theta: Theta, key: Key) -> Array:
        def window(particles: Particle, key: Key) -> tuple[Particle, Array]:
            k_step, k_look = jax.random.split(key)
            _, particles, _ = estimator.step(theta, particles, k_step)
            return particles, shares(particles, k_look)

        k_start, k_run = jax.random.split(key)
        first = estimator.init(theta, k_start)
        return jax.lax.scan(window, first, jax.random.split(k_run, windows))[1]

    return Seen(np.asarray(watch(theta, key), np.float64))


def histogram(grads: Array) -> Float[Array, "bins"]:
    """Shares of zeros and of each bin; [1 + BINS], of sum 1."""
    size = jnp.abs(grads)
    place = jnp.floor((jnp.log10(jnp.maximum(size, 1e-30)) - LOW) / WIDTH)
    place = 1 + jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
    place = jnp.where(size == 0.0, 0, place)
    counts = jnp.zeros((1 + BINS,), jnp.float32).at[place.ravel()].add(1.0)
    return counts / place.size


def _moment(shares: NDArray[np.float64], around: Any, power: int) -> Any:
    middles = LOW + WIDTH * (np.arange(BINS) + 0.5)
    rest = shares[:, 1:]
    return np.sum(rest * (middles - around) ** power, axis=1) / rest.sum(axis=1)
