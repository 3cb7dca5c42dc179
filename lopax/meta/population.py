"""A population of learned optimizers that are trained side by side and selected.

A member is everything that a run without a population carries: theta, the outer
optimizer's state with its own update multiplier (and phi, if that optimizer is
learned), the estimator's running inner problems, a key. Every few outer steps all
members are judged on the same tasks, batches and initial parameters; some become
copies of others (exploit), copies change their multiplier (explore) and may take a
present theta of the better half as their outer optimizer (bootstrap): random rules
then come to train each other, with no hand-made optimizer in the loop (Metz et al.,
2021, arXiv 2101.07367; population-based training: Jaderberg et al., 2017, arXiv
1711.09846).

`PopulationTrainer` has the interface of `PhaseTrainer`, so that the loop, checkpoints,
and exact resume are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lopax._core.errors import ConfigError, PopulationLost
from lopax._core.task import TaskFamily
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.estimators import perturb
from lopax.estimators.particles import AXIS
from lopax.meta import distributed
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.fitness import score
from lopax.meta.generation import Generation, founders, renew
from lopax.meta.trainer import (
    MetaState,
    PhaseTrainer,
    StepInfo,
    summarise,
)

POPULATION_STREAM = 20_001
"""Folded into the key that the first member has for itself."""


class PopulationState(NamedTuple):
    """Everything a population carries; a checkpoint is exactly this."""

    members: MetaState  # leaves [P, ...]
    average: Theta  # (averaged) theta of the best member, when last judged
    scores: Float[Array, " P"]  # when last judged; +inf: lost
    key: Key
    step: Count  # [] int32, outer steps done in this phase


class PopulationInfo(NamedTuple):
    """The report of `PopulationTrainer.advance`."""

    steps: StepInfo  # leaves [P, count]
    scores: Float[Array, " P"]  # the latest
    generations: tuple[tuple[int, Generation], ...]  # outer step in the phase, and what


class PopulationTrainer:
    """Meta-training of one phase by a population; see the module docstring.

    **Arguments:** as `PhaseTrainer`, with `run.population` set. `mesh`: devices to
    spread the members over, a whole number on each.

    In the first phase of a run from a fresh theta the members are drawn
    independently, the first being what a run without a population would start from.
    Otherwise all start from the same theta. Raises `ConfigError`.
    """

    def __init__(
        self,
        run: RunConfig,
        phase: PhaseConfig,
        families: Sequence[TaskFamily],
        mesh: Mesh | None = None,
        outer_optimizer: optax.GradientTransformation | None = None,
    ):
        if run.population is None:
            raise ConfigError("RunConfig.population = None: a population needs it set")
        self.config, self.phase, self.mesh = run.population, phase, mesh
        self.member = PhaseTrainer(run, phase, families, None, outer_optimizer)
        self._founding = phase == run.phases[0]
        self._fresh = run.starts_fresh and self._founding
        devices = 1 if mesh is None else mesh.shape[AXIS]
        self.config.check_sizes(len(families), devices)
        self._arrays = distributed.replicate(self.member.arrays, mesh)
        split, whole = None, None
        if mesh is not None:
            split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
        self._split = split
        self._start = jax.jit(jax.vmap(self.member.start, (None, 0, 0)))
        self._advance = jax.jit(
            self._advance_fn, static_argnames="count", donate_argnums=1
        )
        self._judge = jax.jit(self._judge_fn, out_shardings=whole)
        self._renew = jax.jit(
            self._renew_fn, donate_argnums=0, out_shardings=(split, whole, whole)
        )

    def check(self, theta: Theta) -> None:
        """Raises what `init` would raise, and computes nothing."""
        self.member.check(theta)

    def init(self, theta: Theta, key: Key) -> PopulationState:
        """The state at the start of the phase, judged once. Raises `ConfigError` if a
        trainable pattern matches nothing."""
        perturb.trainable_mask(theta, self.phase.trainable)
        theta = jax.tree.map(np.asarray, theta)
        size = self.config.size
        stream = jax.random.fold_in(key, POPULATION_STREAM)
        own, draws, renewals = jax.random.split(stream, 3)
        thetas = jax.tree.map(lambda x: jnp.stack([x] * size), theta)
        if self._fresh:
            drawn = jax.jit(jax.vmap(self.member.optimizer.init_theta))(
                jax.random.split(draws, size)
            )
            thetas = jax.tree.map(lambda x, d: d.at[0].set(x), theta, drawn)
        # The first member has the very theta and key of a run without a population.
        keys = jnp.concatenate([key[None], jax.random.split(own, size)[1:]])
        members = self._start(self.member.arrays, thetas, keys)
        if self._split is not None:
            members = jax.tree.map(lambda x: distributed.put(x, self._split), members)
        scores, average = self._judge(self._arrays, members.average)
        rest = distributed.replicate((renewals, jnp.zeros((), jnp.int32)), self.mesh)
        return PopulationState(members, average, scores, *rest)

    def advance(
        self, state: PopulationState, count: int
    ) -> tuple[PopulationState, PopulationInfo]:
        """`count` outer steps of every member, and a generation if one is due then;
        `state` is consumed. `count` divides the population's interval.

        Raises `PopulationLost` if all members are lost and cannot be replaced.
        """
        before = int(state.step)
        generations = []
        if before == 0 and self._founding:
            generations.append(
                (0, founders(state.scores, distributed.gather(state.members.outer)))
            )
        members, steps = self._advance(self._arrays, state.members, count=count)
        state = state._replace(members=members, step=state.step + count)
        if (before + count) % self.config.interval == 0:
            scores, average = self._judge(self._arrays, members.average)
            self._check_alive(scores, before + count)
            members, key, born = self._renew(members, scores, state.key, state.step)
            state = PopulationState(members, average, scores, key, state.step)
            generations.append((before + count, born))
        return state, PopulationInfo(steps, state.scores, tuple(generations))

    def summarise(self, info: PopulationInfo) -> dict[str, float]:
        """One line of metrics: means and sums over members; the best score when last
        judged, and how many members were lost then."""
        scores = np.asarray(info.scores)
        return {
            **summarise(distributed.gather(info.steps)),
            "best": float(np.min(scores)),
            "lost": int(np.sum(~np.isfinite(scores))),
        }

    def lineage(self, info: PopulationInfo) -> Iterator[dict[str, Any]]:
        """A line for each member of each new generation."""
        for step, born in info.generations:
            host = jax.tree.map(np.asarray, born)
            for i in range(self.config.size):
                yield {
                    "step": step,
                    "generation": step // self.config.interval,
                    "member": i,
                    "score": _finite_or_none(host.scores[i]),
                    "parent": int(host.parents[i]),
                    "phi_parent": None if host.donors[i] < 0 else int(host.donors[i]),
                    "multiplier": float(host.multipliers[i]),
                }

    def _advance_fn(
        self, arrays: list[Any], members: MetaState, count: int
    ) -> tuple[MetaState, StepInfo]:
        def steps(arrays: list[Any], member: MetaState) -> tuple[MetaState, StepInfo]:
            return self.member.outer_steps(arrays, member, count)

        return self._each(steps)(arrays, members)

    def _judge_fn(
        self, arrays: list[Any], averages: Theta
    ) -> tuple[Float[Array, " P"], Theta]:
        """All members' scores, and the best one's theta."""
        member = self.member

        def judged(arrays: list[Any], theta: Theta) -> Scalar:
            families = member.rebuild(arrays)
            config = member.estimator_config
            return score(self.config, config, member.optimizer, families, theta)

        scores = self._each(judged)(arrays, averages)
        best = jnp.argmin(scores)
        return scores, jax.tree.map(lambda x: x[best], averages)

    def _renew_fn(
        self, members: MetaState, scores: Float[Array, " P"], key: Key, step: Count
    ) -> tuple[MetaState, Key, Generation]:
        key, now = jax.random.split(key)
        members, born = renew(
            self.config,
            self.member.optimizer,
            self.member.followed,
            members,
            scores,
            now,
            self.phase.outer_steps - step,
        )
        return members, key, born

    def _each(self, fn: Callable[[list[Any], Any], Any]) -> Callable[..., Any]:
        """`fn(arrays, member)` for all members: on every device for its own, without
        communication."""

        def local(arrays: list[Any], members: Any) -> Any:
            size = jax.tree.leaves(members)[0].shape[0]
            count = min(self.config.together or size, size)
            side_by_side = jax.vmap(fn, (None, 0))
            if count == size:
                return side_by_side(arrays, members)
            chunks = jax.tree.map(
                lambda x: x.reshape(size // count, count, *x.shape[1:]), members
            )
            found = jax.lax.map(lambda m: side_by_side(arrays, m), chunks)
            return jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), found)

        if self.mesh is None:
            return local
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        )

    def _check_alive(self, scores: Float[Array, " P"], step: int) -> None:
        if self.config.selection == "none" or np.isfinite(np.asarray(scores)).any():
            return
        raise PopulationLost(
            f"after {step} outer steps all {self.config.size} members have diverged "
            "(their losses or their theta are not finite), so none can be replaced; "
            "start again with a smaller outer.multiplier or learning rate, or with "
            "more members"
        )


def _finite_or_none(x: Any) -> float | None:
    return float(x) if np.isfinite(x) else None
