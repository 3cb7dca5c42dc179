"""Shared type aliases. Four kinds of data never mix: Theta, State, Info, Config.

Theta is meta-learned, State is carried from step to step, Info is only reported,
Config is static and hashable.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from jaxtyping import Key as KeyOf

Params: TypeAlias = PyTree[ArrayLike]
"""The inner problem's parameters: any pytree of arrays."""

Updates: TypeAlias = PyTree[ArrayLike]
"""What is added to Params; same structure, shapes and dtypes."""

Theta: TypeAlias = PyTree[ArrayLike]
"""Meta-parameters of a learned optimizer: nested dicts of float32 arrays."""

State: TypeAlias = PyTree[ArrayLike]
"""An optimizer's carried state."""

TaskState: TypeAlias = PyTree[Any]
"""What a task carries beside Params: batch-norm statistics, environments, nothing."""

Key: TypeAlias = PRNGKeyArray
"""A typed PRNG key, `jax.random.key(seed)`."""

Keys: TypeAlias = KeyOf[Array, "n"]
"""Typed PRNG keys, `jax.random.split(key, n)`."""

Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
Batch: TypeAlias = Any

__all__ = [
    "Batch",
    "Count",
    "Flag",
    "Key",
    "Keys",
    "Params",
    "Scalar",
    "State",
    "TaskState",
    "Theta",
    "Updates",
]
