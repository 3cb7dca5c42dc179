"""One outer step, and many of them, as one compiled program.

Sampling perturbations, unrolling the window with in-jit batches, estimating the
gradient and updating theta never leave the device; the host sees a small report every
`log_every` outer steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lopax._core.errors import ConfigError
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import TaskFamily
from lopax._core.tree import split_arrays
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.architectures import architecture
from lopax.estimators import (
    ESTIMATORS,
    Horizon,
    Mixture,
    ParticleSettings,
    Unroller,
    perturb,
)
from lopax.meta import distributed, outer
from lopax.meta.config import EstimatorConfig, PhaseConfig, RunConfig


class MetaState(NamedTuple):
    """Everything that meta-training carries; a checkpoint is exactly this."""

    theta: Theta
    average: Theta  # moving average of theta (theta itself if averaging is off)
    outer: Any  # the outer optimizer's state, over the trainable leaves
    estimator: Any
    key: Key
    step: Count  # [] int32, outer steps done in this phase


class StepInfo(NamedTuple):
    """The report of one outer step."""

    estimate: EstimateInfo
    grad_norm: Scalar
    update_norm: Scalar


def build_estimator(
    config: EstimatorConfig,
    optimizer: LearnedOptimizer,
    families: Sequence[TaskFamily],
    trainable: tuple[str, ...],
    mesh: Mesh | None = None,
) -> Estimator:
    """The estimator of a configuration: one over the only family, or a mixture of one
    for each, with an equal part of the particles. Raises `UnknownName` /
    `ConfigError`."""
    make = ESTIMATORS[config.name]
    known = {f.name for f in dataclasses.fields(make)}  # type: ignore[arg-type]
    wanted = {
        k: getattr(config, k)
        for k in ("truncation", "sigma", "sign", "objective")
        if k in known
    }
    if config.particles % len(families):
        raise ConfigError(
            f"EstimatorConfig.particles = {config.particles}: must be a multiple of "
            f"the {len(families)} groups of tasks"
        )
    settings = ParticleSettings(
        num_particles=config.particles // len(families),
        trainable=trainable,
        chunk=config.chunk,
        mesh=mesh,
    )
    horizon = Horizon(
        low=config.horizon_low, high=config.horizon_high, staggered=config.staggered
    )

    def part(family: TaskFamily) -> Estimator:
        unroller = Unroller(
            optimizer=optimizer,
            family=family,
            horizon=horizon,
            first_order=config.first_order,
            emphasis=config.emphasis,
        )
        return make(unroller=unroller, settings=settings, **wanted)  # type: ignore[call-arg]

    parts = [part(family) for family in families]
    return parts[0] if len(parts) == 1 else Mixture(parts=parts)


class PhaseTrainer:
    """Meta-training of one phase.

    **Arguments:**

    - `run`, `phase`: the configuration.
    - `families`: the groups of tasks; their arrays become arguments of the compiled
        program.
    - `mesh`: devices to spread particles over (axis "particles"), or None.
    - `outer_optimizer`: any optax transformation instead of the configured one. It is
        given the trainable leaves, and the meta-loss as `value`.
    """

    def __init__(
        self,
        run: RunConfig,
        phase: PhaseConfig,
        families: Sequence[TaskFamily],
        mesh: Mesh | None = None,
        outer_optimizer: optax.GradientTransformation | None = None,
    ):
        self.run, self.phase, self.mesh = run, phase, mesh
        self.optimizer = architecture(run.architecture, **run.settings_of(phase))
        self.outer_config = run.outer_of(phase)
        if outer_optimizer is None:
            outer_optimizer = outer.build(self.outer_config, phase.outer_steps)
        self.outer = optax.with_extra_args_support(outer_optimizer)
        self._estimator_config = run.estimator_of(phase)
        arrays, self._rebuild = split_arrays(tuple(families))
        self._arrays = arrays
        self._placed = distributed.replicate(arrays, mesh)
        self._init = jax.jit(self._init_fn)
        self._advance = jax.jit(
            self._advance_fn, static_argnames="count", donate_argnums=1
        )

    def init(self, theta: Theta, key: Key) -> MetaState:
        """The state at the start of the phase. Raises `ConfigError` if a trainable
        pattern matches nothing."""
        perturb.trainable_mask(theta, self.phase.trainable)
        theta = jax.tree.map(np.asarray, theta)
        return distributed.place(self._init(self._arrays, theta, key), self.mesh)

    def advance(self, state: MetaState, count: int) -> tuple[MetaState, StepInfo]:
        """`count` outer steps; `state` is consumed. Info leaves are [count]."""
        return self._advance(self._placed, state, count=count)

    def lower(self, state: MetaState, count: int) -> Any:
        """The lowered program of `advance`, for benchmarks of compile time."""
        return self._advance.lower(self._placed, state, count=count)

    def _estimator(self, arrays: list[Any]) -> Estimator:
        noisy = ("*",) if self.run.published_freezing else self.phase.trainable
        families = self._rebuild(arrays)
        return build_estimator(
            self._estimator_config, self.optimizer, families, noisy, self.mesh
        )

    def _init_fn(self, arrays: list[Any], theta: Theta, key: Key) -> MetaState:
        key, start = jax.random.split(key)
        # Copies, so that the donated state never aliases the caller's arrays; with
        # strong types, so that the second call of `advance` fits the first's program.
        theta = jax.tree.map(lambda x: jnp.array(x, x.dtype), theta)
        return MetaState(
            theta=theta,
            average=jax.tree.map(jnp.array, theta),
            outer=self.outer.init(self._followed(theta)),
            estimator=self._estimator(arrays).init(theta, start),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def _followed(self, theta: Theta) -> list[Any]:
        """The leaves the outer optimizer sees: the trainable ones, or with
        `published_freezing` all (so that weight decay reaches frozen ones)."""
        if self.run.published_freezing:
            return jax.tree.leaves(theta)
        mask = perturb.trainable_mask(theta, self.phase.trainable)
        return perturb.trainable_leaves(theta, mask)

    def _advance_fn(
        self, arrays: list[Any], state: MetaState, count: int
    ) -> tuple[MetaState, StepInfo]:
        estimator = self._estimator(arrays)
        mask = perturb.trainable_mask(state.theta, self.phase.trainable)

        def body(state: MetaState, _: None) -> tuple[MetaState, StepInfo]:
            key, now = jax.random.split(state.key)
            grad, est_state, info = estimator.step(state.theta, state.estimator, now)
            grad = jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g), grad, mask)
            followed = self._followed(state.theta)
            updates, outer_state = self.outer.update(
                self._followed(grad), state.outer, followed, value=info.loss
            )
            moved: Any = optax.apply_updates(followed, updates)
            if self.run.published_freezing:
                theta = jax.tree.unflatten(jax.tree.structure(state.theta), moved)
            else:
                theta = perturb.merge_leaves(state.theta, mask, moved)
            next_state = MetaState(
                theta=theta,
                average=self._averaged(state, theta),
                outer=outer_state,
                estimator=est_state,
                key=key,
                step=state.step + 1,
            )
            report = StepInfo(info, optax.global_norm(grad), optax.global_norm(updates))
            return next_state, report

        return jax.lax.scan(body, state, None, length=count)

    def _averaged(self, state: MetaState, theta: Theta) -> Theta:
        decay = self.outer_config.average
        if decay == 0.0:
            return theta
        # Short memory at first, so that the start is forgotten quickly.
        t = state.step.astype(jnp.float32)
        d = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
        # In this form a leaf that does not move stays the same to the bit.
        return jax.tree.map(lambda a, x: a + (1.0 - d) * (x - a), state.average, theta)
