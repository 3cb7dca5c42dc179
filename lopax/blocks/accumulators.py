"""Running statistics of one tensor's gradient: momenta and second moments.

None of them is bias-corrected; architectures that want that do it on top. Several
decays are kept as a leading axis of the accumulator, so that each decay's array is
contiguous and has the tensor's own layout (and sharding) behind that axis.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lopax.blocks.normalize import safe_rsqrt

Decays: TypeAlias = Sequence[float] | Float[Array, "K"]


def decay_column(decays: Decays, ndim: int) -> Array:
    """[K, 1, ..., 1] float32, to broadcast K decays against [K, *shape]."""
    return jnp.asarray(decays, jnp.float32).reshape((-1,) + (1,) * ndim)


def ema(
    old: Float[Array, "K *s"], new: Float[Array, "*s"], decays: Decays
) -> Float[Array, "K *s"]:
    """d old + (1 - d) new for each decay; `old` [K, *shape], `new` [*shape]."""
    d = decay_column(decays, new.ndim)
    return d * old + (1.0 - d) * new


def learned_decays(initial: Sequence[float], offsets: Array) -> Float[Array, "K"]:
    """Meta-learned decays 1 - (1 - d) exp(10 t), for offsets t around zero, in [0, 1].

    The factor of 10 makes offsets of the size of the perturbations used in
    meta-training (0.01) move the time constant by a tenth.
    """
    # In float32 only four digits of 1 - d survive for d near one, so another order of
    # operations would be another decay than the published weights were trained with.
    start = jnp.log(1.0 - jnp.asarray(initial, jnp.float32)) / 10.0
    return jnp.clip(1.0 - jnp.exp((start + offsets) * 10.0), 0.0, 1.0)


def reached(*averages: Float[Array, "_ *s"]) -> Bool[Array, "*s"]:
    """Which elements ever saw a gradient other than zero: those where any of these
    averages of it is not zero. The others are to stay where they are."""
    found = [jnp.any(x != 0.0, axis=0) for x in averages]
    return functools.reduce(jnp.logical_or, found)


class Factored(NamedTuple):
    """Second moments by row and by column (Shazeer & Stern, 2018, arXiv 1804.04235).

    For a tensor of rank >= 2, `row` [K, *shape without d0] and `col` [K, *shape
    without d1], d0 and d1 the largest and second largest dimension; `full` is empty.
    For rank 1, `full` [K, n] and the others are empty.
    """

    row: Float[Array, "K *r"]
    col: Float[Array, "K *c"]
    full: Float[Array, "K *s"]


class FactoredViews(NamedTuple):
    """What features read off a `Factored`, broadcastable to [K, *shape]."""

    row: Array  # second moment by row
    col: Array  # second moment by column (equal to `row` for vectors)
    row_scale: Array  # rsqrt of the row's share of the mean
    col_scale: Array  # rsqrt of the column's moment


def factored_dims(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(d1, d0): the second largest and the largest dimension, ties in index order.

    A stable sort, unlike the published code's, whose choice for tensors of rank >= 4
    with equal sizes depends on the processor.
    """
    if len(shape) < 2:
        return None
    order = np.argsort(np.asarray(shape), kind="stable")
    return int(order[-2]), int(order[-1])


def factored_init(shape: tuple[int, ...], num_decays: int) -> Factored:
    """All-zero moments for a tensor of this shape."""
    dims = factored_dims(shape)

    def zeros(s: tuple[int, ...]) -> Array:
        return jnp.zeros((num_decays, *s), jnp.float32)

    def empty() -> Array:
        # One array each: a state that holds an array twice cannot be donated.
        return jnp.zeros((0,), jnp.float32)

    if dims is None:
        return Factored(empty(), empty(), zeros(shape))
    d1, d0 = dims
    return Factored(zeros(_without(shape, d0)), zeros(_without(shape, d1)), empty())


def factored_update(old: Factored, grad: Array, decays: Decays) -> Factored:
    """Moments after one more gradient [*shape]."""
    if grad.size == 0:  # a mean over nothing would be NaN
        return old
    square = jnp.square(grad) + 1e-30
    dims = factored_dims(grad.shape)
    if dims is None:
        return old._replace(full=ema(old.full, square, decays))
    d1, d0 = dims
    return old._replace(
        row=ema(old.row, jnp.mean(square, axis=d0), decays),
        col=ema(old.col, jnp.mean(square, axis=d1), decays),
    )


def factored_views(state: Factored, shape: tuple[int, ...]) -> FactoredViews:
    """Moments and scales as arrays [K, ...] that broadcast against [K, *shape]."""
    dims = factored_dims(shape)
    if dims is None:
        one = jnp.ones((1,) * (len(shape) + 1), jnp.float32)
        scale = safe_rsqrt(state.full + 1e-9)
        return FactoredViews(state.full, state.full, scale, one)
    d1, d0 = dims
    row_axis = 1 + (d1 - 1 if d1 > d0 else d1)
    mean = jnp.mean(state.row, axis=row_axis, keepdims=True)
    row_scale = safe_rsqrt(state.row / (mean + 1e-9))
    return FactoredViews(
        row=jnp.expand_dims(state.row, 1 + d0),
        col=jnp.expand_dims(state.col, 1 + d1),
        row_scale=jnp.expand_dims(row_scale, 1 + d0),
        col_scale=jnp.expand_dims(safe_rsqrt(state.col), 1 + d1),
    )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(int(n) for i, n in enumerate(shape) if i != axis)


def zeros(num_decays: int, param: Any) -> Array:
    """[K, *shape] float32 zeros."""
    return jnp.zeros((num_decays, *param.shape), jnp.float32)
