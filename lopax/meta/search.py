"""Search over few meta-parameters by evolution strategies that adapt their own shape.

A meta-gradient moves any number of meta-parameters, at the price of a step size, a
perturbation size and noise. For a few dozen, strategies that learn the covariance of
their candidates need neither (CMA-ES: Hansen and Ostermeier, 2001; natural evolution
strategies: Wierstra et al., 2014, JMLR 15). In a generation all candidates run the same
whole inner problems, and only their ranks count. The algorithms are evosax's (Lange,
2022, arXiv 2212.04180).

`SearchTrainer` has the interface of `PhaseTrainer`, so that the loop, checkpoints and
exact resume are the same. What a recipe's `[estimator]` says of inner problems holds
(horizons, objective, emphasis); its particles and sigma and the table `[outer]` are of
no use here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lopax._core.errors import ConfigError, MissingExtra
from lopax._core.task import TaskFamily
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.estimators import Unroller, perturb
from lopax.estimators.particles import AXIS
from lopax.estimators.unroll import Run
from lopax.meta import distributed
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.trainer import PhaseTrainer, build_unroller

BROKEN = 1e6
"""Meta-loss of a run whose meta-loss is not finite."""


class SearchState(NamedTuple):
    """Everything that a search carries; a checkpoint is exactly this."""

    average: Theta  # theta at the distribution's mean; at the end, `keep` of its way
    start: Theta  # theta at the start: what is not trained, and the origin
    strategy: Any  # evosax's state, over theta's trainable part less the start's
    key: Key
    step: Count  # [] int32, generations done in this phase


class SearchInfo(NamedTuple):
    """The report of one generation."""

    loss: Scalar  # mean meta-loss of all candidates
    best: Scalar  # lowest fitness of a candidate
    spread: Scalar  # standard deviation of the candidates' fitness
    distance: Scalar  # norm of the mean's way from the start
    moved: Scalar  # norm of the mean's last step
    inner_steps: Scalar
    diverged: Scalar  # inner steps whose loss was not finite


class SearchTrainer:
    """A search of one phase; see the module docstring.

    **Arguments:** as `PhaseTrainer`, with `phase.search` set. Candidates are spread
    over the mesh; the distribution they are drawn from is the same on every device.

    Raises `ConfigError`, `MissingExtra` without evosax.
    """

    def __init__(
        self,
        run: RunConfig,
        phase: PhaseConfig,
        families: Sequence[TaskFamily],
        mesh: Mesh | None = None,
        outer_optimizer: optax.GradientTransformation | None = None,
    ):
        if phase.search is None:
            raise ConfigError(f"phase {phase.name!r}: search = None, but a search runs")
        if outer_optimizer is not None:
            raise ConfigError(
                f"phase {phase.name!r} searches: it takes no outer_optimizer"
            )
        self.config, self.phase = phase.search, phase
        self.mesh = mesh
        devices = 1 if mesh is None else mesh.shape[AXIS]
        self.config.check_sizes(len(families), devices)
        self.member = PhaseTrainer(run, phase, families)
        self._algorithms = _algorithms()
        self._arrays = distributed.replicate(self.member.arrays, mesh)
        self._advance = jax.jit(
            self._generations, static_argnames="count", donate_argnums=1
        )

    def check(self, theta: Theta) -> None:
        """Raises what `init` would raise, and computes nothing."""
        leaves = self._trainable(theta)
        self.config.check_dimensions(sum(np.size(x) for x in leaves))

    def init(self, theta: Theta, key: Key) -> SearchState:
        """The state at the start of the phase. Raises `ConfigError`."""
        self.check(theta)

        def own(theta: Theta) -> Theta:
            return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), theta)

        key, now = jax.random.split(key)
        strategy, params = self._strategy(theta)
        zeros = [jnp.zeros(np.shape(x)) for x in self._trainable(theta)]
        state = strategy.init(now, zeros, params)
        state = SearchState(
            average=own(theta),
            start=own(theta),
            # With strong types, so that the second call of `advance` fits the first's
            # program.
            strategy=jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), state),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )
        return distributed.replicate(state, self.mesh)

    def advance(self, state: SearchState, count: int) -> tuple[SearchState, SearchInfo]:
        """`count` generations; `state` is consumed. Info leaves are [count]."""
        return self._advance(self._arrays, state, count=count)

    def summarise(self, info: SearchInfo) -> dict[str, float]:
        """One line of metrics: means over generations, and sums."""
        host = jax.tree.map(np.asarray, info)
        sums = ("inner_steps", "diverged")
        return {
            name: float(np.sum(x) if name in sums else np.mean(x))
            for name, x in host._asdict().items()
        }

    def lineage(self, info: SearchInfo) -> tuple[()]:
        """Nothing; see `lopax.meta.population`."""
        del info
        return ()

    def _trainable(self, theta: Theta) -> list[Any]:
        mask = perturb.trainable_mask(theta, self.phase.trainable)
        return perturb.trainable_leaves(theta, mask)

    def _strategy(self, theta: Theta) -> tuple[Any, Any]:
        make = self._algorithms[self.config.algorithm]
        leaves = [jnp.zeros(np.shape(x)) for x in self._trainable(theta)]
        strategy = make(population_size=self.config.size, solution=leaves)
        params = strategy.default_params.replace(
            std_init=jnp.asarray(self.config.sigma, jnp.float32)
        )
        return strategy, params

    def _generations(
        self, arrays: list[Any], state: SearchState, count: int
    ) -> tuple[SearchState, SearchInfo]:
        """`advance`, to be compiled."""
        strategy, params = self._strategy(state.start)
        mask = perturb.trainable_mask(state.start, self.phase.trainable)
        origin = self._trainable(state.start)

        def body(state: SearchState, _: None) -> tuple[SearchState, SearchInfo]:
            key, k_ask, k_run, k_tell = jax.random.split(state.key, 4)
            candidates, asked = strategy.ask(k_ask, state.strategy, params)
            losses, steps, diverged = self._losses(
                arrays, state.start, candidates, k_run, state.step
            )
            fitness = self._fitness(losses)
            told, _ = strategy.tell(k_tell, candidates, fitness, asked, params)
            told = jax.tree.map(lambda new, old: new.astype(old.dtype), told, asked)
            mean = strategy.get_mean(told)
            # As the phase's theta is the average after its last generation.
            last = state.step + 1 >= self.phase.outer_steps
            kept = jnp.where(last, self.config.keep, 1.0)
            moved = [a + kept * b for a, b in zip(origin, mean, strict=True)]
            before = strategy.get_mean(state.strategy)
            info = SearchInfo(
                loss=jnp.mean(losses),
                best=jnp.min(fitness),
                spread=jnp.std(fitness),
                distance=optax.global_norm(mean),
                moved=optax.global_norm(jax.tree.map(jnp.subtract, mean, before)),
                inner_steps=steps,
                diverged=diverged,
            )
            theta = perturb.merge_leaves(state.start, mask, moved)
            return SearchState(theta, state.start, told, key, state.step + 1), info

        return jax.lax.scan(body, state, None, length=count)

    def _losses(
        self, arrays: list[Any], start: Theta, candidates: list[Any], key: Key, at: Any
    ) -> tuple[Float[Array, "problems size"], Scalar, Scalar]:
        """Meta-losses of whole runs, the inner steps made, and how many diverged:
        on every device of its own candidates."""
        if self.mesh is None:
            return self._local_losses(arrays, start, candidates, key, at)

        def local(*args: Any) -> tuple[Array, Scalar, Scalar]:
            losses, *counts = self._local_losses(*args)
            return losses, *jax.lax.psum(counts, AXIS)

        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(P(), P(), P(AXIS), P(), P()),
            out_specs=(P(None, AXIS), P(), P()),
            check_vma=False,
        )(arrays, start, candidates, key, at)

    def _local_losses(
        self, arrays: list[Any], start: Theta, candidates: list[Any], key: Key, at: Any
    ) -> tuple[Float[Array, "problems local"], Scalar, Scalar]:
        """`_losses` of the candidates given, however many."""
        families = self.member.rebuild(arrays)
        config = self.member.estimator_config
        size = candidates[0].shape[0]
        num = self.config.problems // len(families)
        together = math.gcd(self.config.together or size, size)
        mask = perturb.trainable_mask(start, self.phase.trainable)
        moved = [
            (a + b).reshape(-1, together, *a.shape)
            for a, b in zip(self._trainable(start), candidates, strict=True)
        ]
        whole = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (size // together, together, *x.shape)), start
        )
        thetas = perturb.merge_leaves(whole, mask, moved)  # [parts, together, ...]
        found = []
        for index, family in enumerate(families):
            unroller = build_unroller(config, self.member.optimizer, family)
            keys = jax.random.split(jax.random.fold_in(key, index), num)
            strata = (at * num + jnp.arange(num)) % family.num_strata

            runs = jax.lax.map(
                functools.partial(_run_together, unroller, strata, keys), thetas
            )  # losses [parts, problems of this family, together]
            losses = jnp.moveaxis(runs.losses, 0, 1).reshape(num, size)
            steps = jnp.sum(runs.steps) * together
            found.append((losses, steps, jnp.sum(runs.diverged)))
        losses, steps, diverged = zip(*found, strict=True)
        return (
            jnp.concatenate(losses),
            jnp.sum(jnp.stack(steps)),
            jnp.sum(jnp.stack(diverged)),
        )

    def _fitness(self, losses: Float[Array, "problems size"]) -> Float[Array, " size"]:
        """Mean over problems of the bounded distance to the problem's median."""
        losses = jnp.where(jnp.isfinite(losses), losses, BROKEN)
        distance = losses - jnp.median(losses, axis=1, keepdims=True)
        return jnp.mean(jnp.clip(distance, -self.config.bound, self.config.bound), 0)


def _run_together(unroller: Unroller, strata: Array, keys: Key, thetas: Theta) -> Run:
    """Whole runs of the N problems, each by all `thetas` [C, ...]."""
    num = len(strata)
    each = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), thetas)
    return unroller.run(each, strata, keys)


def _algorithms() -> dict[str, Any]:
    try:
        from evosax import algorithms
    except ImportError:
        raise MissingExtra("evosax", "search", "searching meta-parameters") from None
    return {
        "cma_es": algorithms.CMA_ES,
        "sep_cma_es": algorithms.Sep_CMA_ES,
        "snes": algorithms.SNES,
        "xnes": algorithms.xNES,
    }
