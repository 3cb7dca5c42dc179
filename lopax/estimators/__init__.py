"""Meta-gradients: evolution strategies (full, truncated, persistent), backprop."""

from __future__ import annotations

from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.registry import Registry
from lopax.estimators.backprop import FullGradient, TruncatedBackprop
from lopax.estimators.es import FullES, TruncatedES
from lopax.estimators.flatness import Flatness
from lopax.estimators.horizons import Horizon
from lopax.estimators.mixture import Mixture
from lopax.estimators.nres import NRES
from lopax.estimators.objective import Objective
from lopax.estimators.particles import ParticleSettings
from lopax.estimators.pes import PES
from lopax.estimators.pipeline import PipelineBackprop
from lopax.estimators.regularised import Regularised
from lopax.estimators.unroll import Unroller

ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
"""Every estimator of the meta-gradient by name."""

ESTIMATORS.add("pes", PES)
ESTIMATORS.add("nres", NRES)
ESTIMATORS.add("es_single", NRES)  # the same, under its other name
ESTIMATORS.add("full_es", FullES)
ESTIMATORS.add("truncated_es", TruncatedES)
ESTIMATORS.add("truncated_backprop", TruncatedBackprop)
ESTIMATORS.add("pipeline_backprop", PipelineBackprop)
ESTIMATORS.add("full_gradient", FullGradient)

__all__ = [
    "ESTIMATORS",
    "NRES",
    "PES",
    "EstimateInfo",
    "Estimator",
    "Flatness",
    "FullES",
    "FullGradient",
    "Horizon",
    "Mixture",
    "Objective",
    "ParticleSettings",
    "PipelineBackprop",
    "Regularised",
    "TruncatedBackprop",
    "TruncatedES",
    "Unroller",
]
