"""Persistent evolution strategies: unbiased gradients from truncated unrolls.

Vicol, Metz and Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation
Graphs with Persistent Evolution Strategies" (2021, arXiv 2112.13835), with staggered
log-uniform horizons per particle as used to meta-train Celo (Moudgil et al., 2025,
arXiv 2501.12670). Each particle remembers the sum of the noise applied since its
inner problem started; the loss differences of a window are credited to that sum.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from lopax._core.types import Key
from lopax.estimators.antithetic import Credit, WindowES


@dataclasses.dataclass(frozen=True, kw_only=True)
class PES(WindowES):
    """See the module docstring; arguments as `WindowES`."""

    def start_memory(self, key: Key, leaves: list[Any]) -> list[Any]:
        del key
        num = self.settings.num_particles
        return [jnp.zeros((num, *x.shape), jnp.float32) for x in leaves]

    def credit(self, fresh: list[Any], accumulator: list[Any]) -> Credit:
        total = [a + e for a, e in zip(accumulator, fresh, strict=True)]
        return Credit(acting=fresh, credited=total)
