"""Task augmentation: worse gradients of the same loss.

A learned optimizer that has only met exact float32 gradients of one batch size need
not serve for others. Each inner problem may be given: a reduced batch, bfloat16
arithmetic, gradients that are normalised, noisy, projected on random directions,
estimated by evolution strategies, or some steps old (Metz et al., 2022, arXiv
2211.09760, whose probabilities are the defaults). The loss that is reported, and with
it the meta-loss, is that of the same examples in the same arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.task import Task, TaskFamily, WrappedTask
from lopax._core.tree import select
from lopax._core.types import Batch, Key, Params, Scalar, TaskState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradations:
    """With which probability a problem has each, independently; and how far it goes.

    Raises `ConfigError` for a probability outside [0, 1] or a size below one.
    """

    reduced_batch: float = 0.2
    """Only a share of the batch's examples, log-uniform in [0.01, 1]."""
    bfloat16: float = 0.2
    """Parameters are rounded before the loss, gradients after it."""
    normalised: float = 0.05
    """Gradients are divided by their global norm."""
    noisy: float = 0.0
    """Normal noise is added, of 0.01 to 1 times each tensor's root mean square."""
    directions: float = 0.08
    """Gradients are projected on random directions: 1 to `most_directions` of them."""
    evolution: float = 0.08
    """Gradients are estimated from 1 to `most_pairs` antithetic pairs of losses, at a
    distance of 1e-3 to 0.1."""
    delayed: float = 0.05
    """Gradients are 1 to `most_delay` steps old."""
    most_directions: int = 64
    most_pairs: int = 4
    most_delay: int = 8

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            check_range(self, name, low=0.0, high=1.0)
        for name in ("most_directions", "most_pairs", "most_delay"):
            check_range(self, name, low=1)


PROBABILITIES = (
    "reduced_batch",
    "bfloat16",
    "normalised",
    "noisy",
    "directions",
    "evolution",
    "delayed",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DegradedTask(WrappedTask):
    """`base` with the gradients that `drawn` describes (see `Degraded.sample`).

    The task state is {"base": the base's, "past": gradients of the last steps}. The
    base's gradients must come from its `loss` by automatic differentiation.
    """

    base: Task
    drawn: dict[str, Any]
    limits: Degradations = dataclasses.field(metadata={"static": True})

    def init(self, key: Key) -> tuple[Params, TaskState]:
        params, state = self.base.init(key)
        past: Any = ()
        if "delay" in self.drawn:
            slots = self.limits.most_delay + 1
            zeros = jax.tree.map(
                lambda p: jnp.zeros((slots, *p.shape), p.dtype), params
            )
            past = {"step": jnp.zeros((), jnp.int32), "grads": zeros}
        return params, {"base": state, "past": past}

    def batch(self, key: Key, split: str = "train") -> Batch:
        batch = self.base.batch(key, split)
        if "share" not in self.drawn or split != "train":
            return batch

        def thin(x: Any) -> Any:
            size = x.shape[0]
            kept = jnp.clip(jnp.ceil(self.drawn["share"] * size), 1, size)
            return x[jnp.arange(size) % kept.astype(jnp.int32)]

        return jax.tree.map(thin, batch)

    def loss(
        self, params: Params, task_state: Any, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        params = self._rounded(params)
        loss, base = self.base.loss(params, task_state["base"], key, batch)
        return loss, {**task_state, "base": base}

    def value_and_grad(
        self, params: Params, task_state: Any, key: Key, split: str = "train"
    ) -> tuple[Scalar, Params, TaskState]:
        key, batch_key, loss_key = jax.random.split(key, 3)
        batch = self.batch(batch_key, split)
        (loss, state), grads = jax.value_and_grad(self.loss, has_aux=True)(
            params, task_state, loss_key, batch
        )

        def loss_at(params: Params) -> Scalar:
            return self.loss(params, task_state, loss_key, batch)[0]

        drawn, limits = self.drawn, self.limits
        k_evolution, k_directions, k_noise = jax.random.split(key, 3)
        if "pairs" in drawn:
            guess = _by_evolution(
                loss_at, params, drawn, limits.most_pairs, k_evolution
            )
            grads = select(drawn["pairs"] > 0, guess, grads)
        if "directions" in drawn:
            guess = _projected(grads, drawn, limits.most_directions, k_directions)
            grads = select(drawn["directions"] > 0, guess, grads)
        if "noise" in drawn:
            noise = _normal_like(grads, k_noise)
            grads = jax.tree.map(
                lambda g, n: g + drawn["noise"] * n * _rms(g), grads, noise
            )
        if "normalised" in drawn:
            norm = optax.global_norm(grads)
            unit = jax.tree.map(lambda g: g / (norm + 1e-12), grads)
            grads = select(drawn["normalised"], unit, grads)
        grads = self._rounded(grads)
        if "delay" in drawn:
            grads, past = _delayed(grads, state["past"], drawn["delay"])
            state = {**state, "past": past}
        return loss, grads, state

    def evaluate(self, params: Params, task_state: Any, key: Key, split: str) -> Scalar:
        return self.base.evaluate(params, task_state["base"], key, split)

    def metrics(
        self, params: Params, task_state: Any, key: Key, split: str
    ) -> dict[str, Scalar]:
        return self.base.metrics(params, task_state["base"], key, split)

    def _rounded(self, tree: Any) -> Any:
        if "bfloat16" not in self.drawn:
            return tree
        coarse = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), tree)
        return select(self.drawn["bfloat16"], coarse, tree)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Degraded(TaskFamily):
    """A family whose problems have worse gradients at random. A pytree if its base is.

    A configuration is {"base": the family's own, "drawn": {"share": [], "bfloat16": [],
    "normalised": [], "noise": [], "directions": [], "pairs": [], "distance": [],
    "delay": []}}; entries whose probability is zero are not there and cost nothing.
    Wrap the result in `Reparametrised`, not the other way round.
    """

    base: TaskFamily
    odds: Degradations = dataclasses.field(
        default_factory=Degradations, metadata={"static": True}
    )

    @property
    def num_strata(self) -> int:  # type: ignore[override]
        return self.base.num_strata

    def sample(self, key: Key, stratum: Any = None) -> dict[str, Any]:
        base_key, key = jax.random.split(key)
        odds = self.odds
        draws = jax.random.uniform(key, (3, len(PROBABILITIES)))
        has: dict[str, Any] = dict(zip(PROBABILITIES, draws[0], strict=True))
        size: dict[str, Any] = dict(zip(PROBABILITIES, draws[1], strict=True))

        def on(name: str) -> Any:
            return has[name] < getattr(odds, name)

        def between(name: str, low: float, high: float) -> Any:
            """Log-uniform."""
            spread = math.log(high) - math.log(low)
            return jnp.exp(math.log(low) + size[name] * spread)

        def count(name: str, most: int) -> Any:
            """Log-uniform in 1..most; 0 where it is off."""
            drawn = jnp.floor(between(name, 1.0, most + 1.0)).astype(jnp.int32)
            return jnp.where(on(name), jnp.clip(drawn, 1, most), 0)

        made: dict[str, Any] = {
            "reduced_batch": lambda n: {
                "share": jnp.where(on(n), between(n, 0.01, 1.0), 1.0)
            },
            "bfloat16": lambda n: {"bfloat16": on(n)},
            "normalised": lambda n: {"normalised": on(n)},
            "noisy": lambda n: {"noise": jnp.where(on(n), between(n, 0.01, 1.0), 0.0)},
            "directions": lambda n: {"directions": count(n, odds.most_directions)},
            "evolution": lambda n: {
                "pairs": count(n, odds.most_pairs),
                "distance": 1e-3 * 100.0 ** draws[2, 0],
            },
            "delayed": lambda n: {"delay": count(n, odds.most_delay)},
        }
        drawn: dict[str, Any] = {}
        for name in PROBABILITIES:
            if getattr(odds, name) > 0.0:
                drawn |= made[name](name)
        return {"base": self.base.sample(base_key, stratum), "drawn": drawn}

    def task(self, config: dict[str, Any]) -> DegradedTask:
        base = self.base.task(config["base"])
        own_gradient = type(base).value_and_grad is not Task.value_and_grad
        if own_gradient:
            raise ConfigError(
                f"Degraded over {type(base).__name__}, which computes its own "
                "gradients: degrade the task below it, and wrap the result"
            )
        return DegradedTask(base, config["drawn"], self.odds)


def _rms(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(x))) if x.size else jnp.zeros((), x.dtype)


def _normal_like(tree: Any, key: Key) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [
            jax.random.normal(k, x.shape, x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
    )


def _by_evolution(loss_at: Any, params: Any, drawn: Any, most: int, key: Key) -> Any:
    """mean over pairs of (L(p + d v) - L(p - d v)) / 2d v, with v normal."""
    distance = drawn["distance"]

    def slope(v: Any) -> Scalar:
        up, down = (
            loss_at(jax.tree.map(lambda p, n, s=s: p + s * distance * n, params, v))
            for s in (1.0, -1.0)
        )
        return (up - down) / (2.0 * distance)

    return _along_directions(slope, params, drawn["pairs"], most, key)


def _projected(grads: Any, drawn: Any, most: int, key: Key) -> Any:
    """mean over directions of (v . g) v, with v normal: right on average."""

    def slope(v: Any) -> Scalar:
        products = jax.tree.map(lambda g, n: jnp.sum(g * n), grads, v)
        return jnp.sum(jnp.stack(jax.tree.leaves(products)))

    return _along_directions(slope, grads, drawn["directions"], most, key)


def _along_directions(slope: Any, like: Any, count: Any, most: int, key: Key) -> Any:
    """mean of slope(v) v over `count` (at most `most`) normal directions v."""

    def add(i: int, total: Any) -> Any:
        v = _normal_like(like, jax.random.fold_in(key, i))
        along = jnp.where(i < count, slope(v), 0.0)
        return jax.tree.map(lambda t, n: t + along * n, total, v)

    zero = jax.tree.map(jnp.zeros_like, like)
    total = jax.lax.fori_loop(0, most, add, zero)
    return jax.tree.map(lambda t: t / jnp.maximum(count, 1), total)


def _delayed(grads: Any, past: Any, delay: Any) -> tuple[Any, Any]:
    """The gradient of `delay` steps ago (the oldest there is), and the next past."""
    step = past["step"]
    slots = jax.tree.leaves(past["grads"])[0].shape[0]
    now, then = step % slots, jnp.maximum(step - delay, 0) % slots
    kept = jax.tree.map(lambda old, g: old.at[now].set(g), past["grads"], grads)
    return jax.tree.map(lambda x: x[then], kept), {"step": step + 1, "grads": kept}
