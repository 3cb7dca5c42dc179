"""One outer step, and many of them, as one compiled program.

Sampling perturbations, unrolling the window with in-jit batches, estimating the
gradient and updating theta never leave the device; the host sees a small report every
`log_every` outer steps.
"""

from __future__ import annotations

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
    Regularised,
    Unroller,
    perturb,
)
from lopax.meta import distributed, learned_outer, outer
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.estimator_config import EstimatorConfig


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


def summarise(info: StepInfo) -> dict[str, float]:
    """One line of metrics from the reports of several outer steps."""
    host = jax.tree.map(np.asarray, info)
    return {
        "loss": float(np.mean(host.estimate.loss)),
        "grad_norm": float(np.mean(host.grad_norm)),
        "update_norm": float(np.mean(host.update_norm)),
        "inner_steps": float(np.sum(host.estimate.inner_steps)),
        "finished": float(np.sum(host.estimate.finished)),
        "diverged": float(np.sum(host.estimate.diverged)),
    }


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
    make: Any = ESTIMATORS[config.name]
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

    def part(family: TaskFamily) -> Estimator:
        unroller = build_unroller(config, optimizer, family)
        estimator = make(unroller=unroller, settings=settings, **config.own)
        if config.flatness == "none":
            return estimator
        return Regularised(base=estimator, flatness=config.penalty)

    parts = [part(family) for family in families]
    return parts[0] if len(parts) == 1 else Mixture(parts=parts)


def build_unroller(
    config: EstimatorConfig, optimizer: LearnedOptimizer, family: TaskFamily
) -> Unroller:
    """How a configuration's inner problems run. Raises `ConfigError`."""
    return Unroller(
        optimizer=optimizer,
        family=family,
        horizon=Horizon(
            low=config.horizon_low,
            high=config.horizon_high,
            staggered=config.staggered,
            averaged=config.horizon_averaged,
        ),
        objective=config.looks,
        validation_every=config.validation_every,
        first_order=config.first_order,
        emphasis=config.emphasis,
    )


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
        self._outer_optimizer = outer_optimizer
        self.outer = self._build_outer()
        self.estimator_config = run.estimator_of(phase)
        self.arrays, self.rebuild = split_arrays(tuple(families))
        self._placed = distributed.replicate(self.arrays, mesh)
        self._init = jax.jit(self.start)
        self._advance = jax.jit(
            self.outer_steps, static_argnames="count", donate_argnums=1
        )

    def check(self, theta: Theta) -> None:
        """Raises what `init` would raise, and computes nothing."""
        perturb.trainable_mask(theta, self.phase.trainable)
        jax.eval_shape(self.start, self.arrays, theta, jax.random.key(0))

    def init(self, theta: Theta, key: Key) -> MetaState:
        """The state at the start of the phase. Raises `ConfigError` if a trainable
        pattern matches nothing."""
        perturb.trainable_mask(theta, self.phase.trainable)
        theta = jax.tree.map(np.asarray, theta)
        return distributed.place(self._init(self.arrays, theta, key), self.mesh)

    def advance(self, state: MetaState, count: int) -> tuple[MetaState, StepInfo]:
        """`count` outer steps; `state` is consumed. Info leaves are [count]."""
        return self._advance(self._placed, state, count=count)

    def summarise(self, info: StepInfo) -> dict[str, float]:
        """One line of metrics."""
        return summarise(info)

    def lineage(self, info: StepInfo) -> tuple[()]:
        """Nothing; see `lopax.meta.population`."""
        del info
        return ()

    def lower(self, state: MetaState, count: int) -> Any:
        """The lowered program of `advance`, for benchmarks of compile time."""
        return self._advance.lower(self._placed, state, count=count)

    def _estimator(self, arrays: list[Any]) -> Estimator:
        noisy = ("*",) if self.run.published_freezing else self.phase.trainable
        families = self.rebuild(arrays)
        return build_estimator(
            self.estimator_config, self.optimizer, families, noisy, self.mesh
        )

    def _build_outer(
        self, theta: Theta | None = None
    ) -> optax.GradientTransformationExtraArgs:
        adjustable = self.run.population is not None
        config = self.outer_config
        if self._outer_optimizer is None:
            steps = self.phase.outer_steps
            rule = outer.build(config, steps, self.optimizer, theta, adjustable)
        elif adjustable:
            rule = learned_outer.scaled(self._outer_optimizer, config.multiplier)
        else:
            rule = self._outer_optimizer
        return optax.with_extra_args_support(rule)

    def start(self, arrays: list[Any], theta: Theta, key: Key) -> MetaState:
        """`init`, to be compiled; `arrays` are the families' (`self.arrays`)."""
        key, start = jax.random.split(key)
        # Copies, so that the donated state never aliases the caller's arrays; with
        # strong types, so that the second call of `advance` fits the first's program.
        theta = jax.tree.map(lambda x: jnp.array(x, x.dtype), theta)
        return MetaState(
            theta=theta,
            average=jax.tree.map(jnp.array, theta),
            outer=self._build_outer(theta).init(self.followed(theta)),
            estimator=self._estimator(arrays).init(theta, start),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def followed(self, theta: Theta) -> list[Any]:
        """The leaves the outer optimizer sees: the trainable ones, or with
        `published_freezing` all (so that weight decay reaches frozen ones)."""
        if self.run.published_freezing:
            return jax.tree.leaves(theta)
        mask = perturb.trainable_mask(theta, self.phase.trainable)
        return perturb.trainable_leaves(theta, mask)

    def outer_steps(
        self, arrays: list[Any], state: MetaState, count: int
    ) -> tuple[MetaState, StepInfo]:
        """`advance`, to be compiled."""
        estimator = self._estimator(arrays)
        mask = perturb.trainable_mask(state.theta, self.phase.trainable)

        def body(state: MetaState, _: None) -> tuple[MetaState, StepInfo]:
            key, now = jax.random.split(state.key)
            grad, est_state, info = estimator.step(state.theta, state.estimator, now)
            grad = jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g), grad, mask)
            followed = self.followed(state.theta)
            updates, outer_state = self.outer.update(
                self.followed(grad), state.outer, followed, value=info.loss
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
