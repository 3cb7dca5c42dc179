"""How good a member of a population is, on tasks that stay the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import TaskFamily
from lopax._core.types import Scalar, Theta
from lopax.estimators import Horizon, ParticleSettings
from lopax.meta.estimator_config import EstimatorConfig
from lopax.meta.population_config import PopulationConfig
from lopax.meta.trainer import build_unroller


def score(
    population: PopulationConfig,
    config: EstimatorConfig,
    optimizer: LearnedOptimizer,
    families: Sequence[TaskFamily],
    theta: Theta,
) -> Scalar:
    """[] the estimator's meta-loss on the fixed tasks; +inf if theta is not finite or
    most losses are not (the rest count as the tasks' bound)."""
    steps = population.eval_steps or config.horizon_high
    settings = ParticleSettings(num_particles=population.eval_tasks // len(families))
    losses, broken = [], []
    for index, family in enumerate(families):
        unroller = dataclasses.replace(
            build_unroller(config, optimizer, family),
            horizon=Horizon(low=steps, high=steps),
        )
        key = jax.random.fold_in(jax.random.key(population.eval_seed), index)
        count = settings.num_particles
        thetas = jax.tree.map(
            lambda x, n=count: jnp.broadcast_to(x, (n, 1, *x.shape)), theta
        )
        run = unroller.run(
            thetas, settings.strata(family), jax.random.split(key, count)
        )
        losses.append(jnp.mean(run.losses))
        broken.append(run.diverged / jnp.sum(run.steps))
    score = sum(losses) / len(losses)
    alive = jnp.isfinite(score) & (sum(broken) / len(broken) <= 0.5)
    for x in jax.tree.leaves(theta):
        alive &= jnp.all(jnp.isfinite(x))
    return jnp.where(alive, score, jnp.inf)
