"""Noise-reuse evolution strategies: one perturbation for a whole inner run.

Li, Harrison, Sohl-Dickstein, Smith and Metz, "Variance-Reduced Gradient Estimation via
Noise-Reuse in Online Evolution Strategies" (2023, arXiv 2304.12180); found at the same
time as ES-Single by Vicol, Kolter and Swersky (2023, arXiv 2304.11153), who keep a
single perturbation per particle for the length of its inner problem. Both names give
this estimator.

Unbiased like PES for a theta that stays the same; but where PES draws new noise in
each window and multiplies differences with a growing sum, here noise is drawn when an
inner problem starts, and its variance does not grow with the number of windows. The
smoothed loss it differentiates moves all windows of a run by the same noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from lopax._core.types import Key
from lopax.estimators.antithetic import Credit, WindowES, sample_noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class NRES(WindowES):
    """See the module docstring; arguments as `WindowES`."""

    def start_memory(self, key: Key, leaves: list[Any]) -> list[Any]:
        keys = jax.random.split(key, self.settings.num_particles)
        return sample_noise(keys, leaves, self.sigma)

    def credit(self, fresh: list[Any], accumulator: list[Any]) -> Credit:
        del fresh
        return Credit(acting=accumulator, credited=accumulator)
