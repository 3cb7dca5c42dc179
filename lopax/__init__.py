"""lopax: pretrained and trainable learned optimizers for JAX and PyTorch.

Names are loaded on first use: importing lopax touches no device and imports neither
JAX nor torch, so that PyTorch users need no JAX and JAX users no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lopax._version import __version__

if TYPE_CHECKING:
    from lopax import analysis, data, estimators, evaluate, meta, tasks, torch
    from lopax._core.routing import Route
    from lopax._core.warned import (
        GrowthWarning,
        HorizonWarning,
        LopaxWarning,
        SkippedWarning,
        StackWarning,
        StepSizeWarning,
    )
    from lopax.architectures import architecture
    from lopax.inventory import list_optimizers, list_suites, list_tasks
    from lopax.meta.checkpoint import load_state, save_state
    from lopax.optax import extend, hub, info, optimizer, roles, scale_by
    from lopax.pretrained import list_weights, weights_card
    from lopax.reproductions import list_reproductions
    from lopax.theta import load_theta, save_theta

# public name -> module that defines it
_LAZY = {
    "GrowthWarning": "lopax._core.warned",
    "HorizonWarning": "lopax._core.warned",
    "LopaxWarning": "lopax._core.warned",
    "SkippedWarning": "lopax._core.warned",
    "StackWarning": "lopax._core.warned",
    "StepSizeWarning": "lopax._core.warned",
    "Route": "lopax._core.routing",
    "architecture": "lopax.architectures",
    "extend": "lopax.optax",
    "hub": "lopax.optax",
    "info": "lopax.optax",
    "list_optimizers": "lopax.inventory",
    "list_reproductions": "lopax.reproductions",
    "list_suites": "lopax.inventory",
    "list_tasks": "lopax.inventory",
    "load_state": "lopax.meta.checkpoint",
    "save_state": "lopax.meta.checkpoint",
    "list_weights": "lopax.pretrained",
    "weights_card": "lopax.pretrained",
    "load_theta": "lopax.theta",
    "optimizer": "lopax.optax",
    "roles": "lopax.optax",
    "scale_by": "lopax.optax",
    "save_theta": "lopax.theta",
}
_SUBMODULES = {"analysis", "data", "estimators", "evaluate", "meta", "tasks", "torch"}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"lopax.{name}")
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lopax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_SUBMODULES})


__all__ = [
    "GrowthWarning",
    "HorizonWarning",
    "LopaxWarning",
    "Route",
    "SkippedWarning",
    "StackWarning",
    "StepSizeWarning",
    "__version__",
    "analysis",
    "architecture",
    "data",
    "estimators",
    "evaluate",
    "extend",
    "hub",
    "info",
    "list_optimizers",
    "list_reproductions",
    "list_suites",
    "list_tasks",
    "list_weights",
    "load_state",
    "load_theta",
    "meta",
    "optimizer",
    "roles",
    "save_state",
    "save_theta",
    "scale_by",
    "tasks",
    "torch",
    "weights_card",
]
