"""Meta-gradients: evolution strategies (full, truncated, persistent), backprop."""

from __future__ import annotations

from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.registry import Registry
from lopax.estimators.backprop import FullGradient, TruncatedBackprop
from lopax.estimators.es import FullES, TruncatedES
from lopax.estimators.horizons import Horizon
from lopax.estimators.mixture import Mixture
from lopax.estimators.particles import ParticleSettings
from lopax.estimators.pes import PES
from lopax.estimators.unroll import Unroller

ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
ESTIMATORS.add("pes", PES)
ESTIMATORS.add("full_es", FullES)
ESTIMATORS.add("truncated_es", TruncatedES)
ESTIMATORS.add("truncated_backprop", TruncatedBackprop)
ESTIMATORS.add("full_gradient", FullGradient)

__all__ = [
    "ESTIMATORS",
    "PES",
    "EstimateInfo",
    "Estimator",
    "FullES",
    "FullGradient",
    "Horizon",
    "Mixture",
    "ParticleSettings",
    "TruncatedBackprop",
    "TruncatedES",
    "Unroller",
]
