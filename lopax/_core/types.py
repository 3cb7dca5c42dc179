"""Shared type aliases. Four kinds of data never mix: Theta, State, Info, Config.

Theta is meta-learned, State is carried from step to step, Info is only reported,
Config is static and hashable.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

Params: TypeAlias = PyTree[Array]
"""The inner problem's parameters: any pytree of arrays."""

Updates: TypeAlias = PyTree[Array]
"""What is added to Params; same structure, shapes and dtypes."""

Theta: TypeAlias = PyTree[Array]
"""Meta-parameters of a learned optimizer: nested dicts of float32 arrays."""

State: TypeAlias = PyTree[Array]
"""An optimizer's carried state."""

TaskState: TypeAlias = PyTree[Any]
"""What a task carries beside Params: batch-norm statistics, environments, nothing."""

Key: TypeAlias = PRNGKeyArray
"""A typed PRNG key, `jax.random.key(seed)`."""

Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
Batch: TypeAlias = Any

__all__ = [
    "Batch",
    "Count",
    "Flag",
    "Key",
    "Params",
    "Scalar",
    "State",
    "TaskState",
    "Theta",
    "Updates",
]
