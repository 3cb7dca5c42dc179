"""Roots with a derivative everywhere: whoever differentiates through a step meets them
at zero, where theirs is infinite, and infinity times zero is no number.

Values are those of `jnp.sqrt` and `jax.lax.rsqrt`, to the bit, and so are derivatives
that float32 can hold. The others count as zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_jvp
def sqrt(x: Any) -> Any:
    """The root of each element."""
    return jnp.sqrt(x)


@jax.custom_jvp
def rsqrt(x: Any) -> Any:
    """One over the root of each element."""
    return jax.lax.rsqrt(x)


def _derivative(slope: Any, change: Any) -> Any:
    return change * jnp.where(jnp.isfinite(slope), slope, 0.0)


@sqrt.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (change,) = primals, tangents
    root = sqrt(x)
    return root, _derivative(0.5 / root, change)


@rsqrt.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (change,) = primals, tangents
    root = rsqrt(x)
    return root, _derivative(-0.5 * (root / x), change)
