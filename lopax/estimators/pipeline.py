"""Back-propagation with a fresh batch as the judge, and resets in a pipeline.

The scheme by which Optim4RL is trained (Lan et al., 2023, arXiv 2302.01470), for any
task family. An outer step makes `truncation` inner updates of every particle and then
takes the loss on a fresh batch at the new parameters; that loss alone is
differentiated, through the updates. (For a reinforcement learner the fresh batch is a
rollout by the new policy.) Runs end between windows, never inside one. If they are
staggered, the particles' ages are spread evenly, so that every meta-gradient has seen
beginners and veterans; otherwise all start and end together, and the meta-gradient's
distribution moves with their common age.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Count, Key, Keys, Theta
from lopax.estimators import perturb
from lopax.estimators.antithetic import to_theta
from lopax.estimators.objective import Objective
from lopax.estimators.particles import ParticleSettings, finish_info, run_chunks
from lopax.estimators.step import Particle, pick
from lopax.estimators.unroll import Unroller


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineBackprop(Estimator):
    """See the module docstring.

    **Arguments:**

    - `unroller`: its horizon is the length of a run in inner updates, rounded up to
        whole windows; `horizon.staggered` chooses between the pipeline and runs in
        step. Its objective says which split the fresh batch is of ("mean": one batch,
        "last_recompute": the mean over several).
    - `truncation`: inner updates before each fresh batch.

    Raises `ConfigError` for an objective that is not the loss at one point, and for a
    flatness penalty, which acts on the steps between.
    """

    unroller: Unroller
    settings: ParticleSettings
    truncation: int = 4

    uses_backprop = True

    def __post_init__(self) -> None:
        check_range(self, "truncation", low=1)
        u = self.unroller
        if u.objective.kind not in ("mean", "last_recompute") or u.emphasis > 0.0:
            raise ConfigError(
                f"objective {u.objective.kind!r} with emphasis {u.emphasis}: "
                "pipeline_backprop judges by fresh batches after each window; use "
                '"mean" or "last_recompute" and no emphasis'
            )

        if u.flatness is not None:
            raise ConfigError(
                f"flatness {u.flatness.measure!r} with pipeline_backprop: the penalty "
                "acts on every inner step, of which this estimator judges none; use "
                "truncated_backprop or full_gradient"
            )

    def init(self, theta: Theta, key: Key) -> Particle:
        s = self.settings
        perturb.trainable_mask(theta, s.trainable)
        keys = jax.random.split(key, s.num_particles)
        particles = self.unroller.start_all(
            _copies(theta, s.num_particles), keys, s.strata(self.unroller.family), False
        )
        if not self.unroller.horizon.staggered:
            return particles
        ages = even_ages(particles.horizon, self.truncation)
        return particles._replace(step=ages)

    def step(
        self, theta: Theta, state: Particle, key: Key
    ) -> tuple[Theta, Particle, EstimateInfo]:
        s = self.settings
        mask = perturb.trainable_mask(theta, s.trainable)

        def chunk(state: Particle, strata: Array, keys: Keys) -> Any:
            leaves = perturb.trainable_leaves(theta, mask)

            def judged(leaves: list[Any]) -> tuple[Any, tuple[Particle, EstimateInfo]]:
                merged = perturb.merge_leaves(theta, mask, leaves)
                after, losses, info = self._window(merged, state, strata, keys)
                return jnp.sum(losses), (after, info)

            grad, (after, info) = jax.grad(judged, has_aux=True)(leaves)
            return after, (grad, info)

        state, (grad, sums) = run_chunks(self.unroller.family, s, chunk, state, key)
        return to_theta(theta, mask, grad, s.num_particles), state, finish_info(sums)

    def _window(
        self, theta: Theta, particles: Particle, strata: Int[Array, "N"], keys: Keys
    ) -> tuple[Particle, Float[Array, "N"], EstimateInfo]:
        """Restarts where runs are over, updates, and looks."""
        u = self.unroller
        thetas = _copies(theta, strata.shape[0])
        split = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
        due: Bool[Array, "N"] = particles.step >= particles.horizon
        particles = jax.lax.cond(
            jnp.any(due),
            lambda old: pick(due, u.start_all(thetas, split[:, 0], strata, False), old),
            lambda old: old,
            particles,
        )
        # The losses on the way are not asked for, so nothing is spent on them.
        mover = dataclasses.replace(u, objective=Objective())

        def update(particles: Particle, keys: Keys) -> tuple[Particle, Any]:
            moved = mover.advance(thetas, particles, keys)
            return moved.particles, jnp.sum(~moved.finite)

        by_time = jax.vmap(lambda k: jax.random.split(k, self.truncation), out_axes=1)(
            split[:, 1]
        )
        particles, diverged = jax.lax.scan(update, particles, by_time)
        losses = u.look(particles, split[:, 2])[:, 0]
        steps = jnp.asarray(float(self.truncation * strata.shape[0]))
        info = EstimateInfo(
            loss=jnp.mean(losses) * steps,
            inner_steps=steps,
            finished=jnp.sum(due).astype(jnp.float32),
            diverged=jnp.sum(diverged).astype(jnp.float32),
        )
        return particles, losses, info


def even_ages(horizons: Int[Array, "N"], stride: int) -> Count:
    """[N] int32, the step counters with which N runs begin meta-training, so that
    their first ends are spread evenly over the windows of a run.

    With runs of n windows, run i ends for the first time before window
    floor(i (n - 1) / (N - 1)), and after that every n windows.
    """
    num = horizons.shape[0]
    windows = -(-horizons // stride)
    first = jnp.arange(num, dtype=jnp.int32) * (windows - 1) // max(num - 1, 1)
    return jnp.where(first == 0, 0, (windows - first) * stride).astype(jnp.int32)


def _copies(theta: Theta, num: int) -> Theta:
    """Leaves [N, 1, ...]: one trajectory for each particle."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, 1, *x.shape)), theta)
