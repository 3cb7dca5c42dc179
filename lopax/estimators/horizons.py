"""How long inner problems run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Count, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Horizon:
    """Log-uniform integer lengths in [low, high]; low = high is a fixed length.

    The sampled length is also the `num_steps` the optimizer is told.
    """

    low: int = 100
    high: int = 2000
    staggered: bool = True
    """Start inner problems at random places of their run, so that particles reset at
    different times (the first window otherwise sees only beginnings)."""
    averaged: bool = False
    """Instead of drawing a length, run to `high` and weigh each step by the share it
    would have had on average. The expectation is the same for rules that are not told
    their horizon, without the variance of the draw; others are told `high`."""

    def __post_init__(self) -> None:
        check_range(self, "low", low=1)
        check_range(self, "high", low=1)
        if self.low > self.high:
            raise ConfigError(
                f"Horizon.low = {self.low}: must be <= high = {self.high}"
            )

    def sample(self, key: Key) -> Count:
        """[] int32."""
        if self.low == self.high or self.averaged:
            return jnp.asarray(self.high, jnp.int32)
        low, high = math.log(self.low), math.log(self.high)
        length = jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))
        return jnp.clip(jnp.round(length).astype(jnp.int32), self.low, self.high)

    def weight(self, step: Any, horizon: Any, emphasis: float) -> Any:
        """[N] how much the loss at `step` [N] counts in a run of `horizon` [N] steps.

        A loss at fraction x of its run is weighted by (1 + p) x^p, p the emphasis,
        which is 1 on average over the run.
        """
        if self.averaged:
            table = jnp.asarray(self._average_weights(emphasis), jnp.float32)
            return table[jnp.minimum(step, self.high - 1)]
        if emphasis == 0.0:
            return jnp.ones(step.shape, jnp.float32)
        share = jnp.minimum((step + 1).astype(jnp.float32) / horizon, 1.0)
        return (1.0 + emphasis) * jnp.power(share, emphasis)

    def _average_weights(self, emphasis: float) -> np.ndarray:
        """[high] the expectation over lengths h of a step's weight in a run of h
        steps, times high / h; zero for runs that have ended by then."""
        lengths = np.arange(self.low, self.high + 1, dtype=np.float64)
        edges = np.concatenate([[self.low], lengths[:-1] + 0.5, [self.high]])
        chances = np.diff(np.log(edges)) if len(lengths) > 1 else np.ones(1)
        # Sums over the lengths that are still running, from the longest down.
        per_step = chances / chances.sum() / lengths ** (1.0 + emphasis)
        running = np.cumsum(per_step[::-1])[::-1]
        steps = np.arange(1, self.high + 1)
        alive = running[np.maximum(steps - self.low, 0)]
        return self.high * (1.0 + emphasis) * steps**emphasis * alive

    def sample_start(self, key: Key) -> Count:
        """[] int32, the inner step counter a new run begins with at the very start of
        meta-training; the optimizer's own iteration begins at zero regardless."""
        if not self.staggered:
            return jnp.zeros((), jnp.int32)
        return jax.random.randint(key, (), 0, self.high, jnp.int32)
