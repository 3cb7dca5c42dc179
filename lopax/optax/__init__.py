"""Learned optimizers as optax transformations, and what belongs to using them."""

from lopax._core.warned import HorizonWarning
from lopax.optax.adapter import optimizer, roles, scale_by
from lopax.optax.chain import from_rule
from lopax.optax.horizon import extend
from lopax.optax.hybrid import HubState, hub
from lopax.optax.report import info
from lopax.optax.states import AccumulationState, OptimizerState, Report

__all__ = [
    "AccumulationState",
    "HorizonWarning",
    "HubState",
    "OptimizerState",
    "Report",
    "extend",
    "from_rule",
    "hub",
    "info",
    "optimizer",
    "roles",
    "scale_by",
]
