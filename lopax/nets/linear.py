"""One affine map."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Theta


def apply(theta: Theta, x: Float[Array, "*n i"]) -> Any:
    """x W + b with W [i, o], in full float32 precision."""
    return jnp.dot(x, theta["w"], precision="highest") + theta["b"]
