"""How long inner problems run."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

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

    def __post_init__(self) -> None:
        check_range(self, "low", low=1)
        check_range(self, "high", low=1)
        if self.low > self.high:
            raise ConfigError(
                f"Horizon.low = {self.low}: must be <= high = {self.high}"
            )

    def sample(self, key: Key) -> Count:
        """[] int32."""
        if self.low == self.high:
            return jnp.asarray(self.low, jnp.int32)
        low, high = math.log(self.low), math.log(self.high)
        length = jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))
        return jnp.clip(jnp.round(length).astype(jnp.int32), self.low, self.high)

    def sample_start(self, key: Key) -> Count:
        """[] int32, the inner step counter a new run begins with at the very start of
        meta-training; the optimizer's own iteration begins at zero regardless."""
        if not self.staggered:
            return jnp.zeros((), jnp.int32)
        return jax.random.randint(key, (), 0, self.high, jnp.int32)
