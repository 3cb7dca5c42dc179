"""Nearly orthogonal matrices: U f(S) V^T of X = U S V^T, with f near one.

What `_core.polar` plans is done here: rounds of a polynomial on the matrix itself, or
on its Gram matrix with one product at the end, or a triangular solve. The rounds are
unrolled, and the scale of the start goes into the first round's small factor. The torch
twin is `lopax.torch.orthogonalize`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopax._core import polar

TOGETHER = 64
"""The longest side of matrices that are faster stacked, on two CPU cores."""
GRAIN = 16
"""Sides that differ in no multiple of it are padded to one."""
SMALL_ROW = 1e-5
"""For "mud": rows below this after the solve depend on earlier ones, and stay small."""


def orthogonalize(
    x: Float[Array | np.ndarray, "*n r c"],
    method: str = "auto",
    rounds: int | None = None,
) -> Float[Array, "*n r c"]:
    """Approximately U V^T for each matrix X = U S V^T in the last two axes.

    Singular values below the method's floor (`_core.polar`) end below one; a zero
    matrix gives zero. The scale of X does not matter, from 1e-30 to 1e30. Zero rows and
    columns change nothing, so that unlike matrices may be padded and stacked. Computed
    in float32.

    **Arguments:**

    - `method`: one of `polar.CHOICES`; "auto" is the cheapest.
    - `rounds`: None for the method's own; see `polar.plan`.

    Raises `ValueError` for another method, rounds below one, or a vector.
    """
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ValueError(f"only matrices can be orthogonalised, got shape {x.shape}")
    tall = _tall(x)
    short, long = sorted(x.shape[-2:])
    if short == 0:
        return x
    plan = polar.plan(method, rounds, short, long)
    # On a CPU, products of a transposed copy are faster than those of a tall matrix.
    y = (jnp.swapaxes(x, -2, -1) if tall else x).astype(jnp.float32)
    # The result does not depend on it, so neither does its derivative.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(y), axis=(-2, -1), keepdims=True))
    y = y / jnp.where(largest > 0.0, largest, 1.0)
    y = _decorrelate(y, plan.solves) if plan.solves else _iterate(y, plan)
    return (jnp.swapaxes(y, -2, -1) if tall else y).astype(x.dtype)


def orthogonalize_all(
    xs: Sequence[Array], method: str = "auto", rounds: int | None = None
) -> list[Array]:
    """`orthogonalize` of several matrices [r, c], small ones together.

    Matrices with sides of at most `TOGETHER` are stacked, tall ones on their side,
    those of nearly one shape padded (zeros change nothing). Larger ones are no faster
    together (`benchmarks/orthogonalize.py`).

    Raises `ValueError` as `orthogonalize`, and for a stack of matrices.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, x in enumerate(xs):
        if x.ndim != 2:
            raise ValueError(f"expected matrices [r, c], got shape {x.shape} at {i}")
        short, long = sorted(x.shape)
        key: Hashable = i
        if short > 1 and long <= TOGETHER:
            key = x.dtype, -(-short // GRAIN), -(-long // GRAIN)
        groups.setdefault(key, []).append(i)
    done: dict[int, Array] = {}
    for members in groups.values():
        if len(members) == 1:
            done[members[0]] = orthogonalize(xs[members[0]], method, rounds)
            continue
        wide = [xs[i].T if _tall(xs[i]) else xs[i] for i in members]
        size = [max(w.shape[axis] for w in wide) for axis in (0, 1)]
        padded = [
            jnp.pad(w, [(0, n - k) for n, k in zip(size, w.shape, strict=True)])
            for w in wide
        ]
        stack = orthogonalize(jnp.stack(padded), method, rounds)
        for i, w, y in zip(members, wide, stack, strict=True):
            y = y[: w.shape[0], : w.shape[1]]
            done[i] = y.T if _tall(xs[i]) else y
    return [done[i] for i in range(len(xs))]


def _tall(x: Array) -> bool:
    return x.shape[-2] > x.shape[-1]


def _iterate(y: Array, plan: polar.Plan) -> Array:
    gram = _gram(y)
    scale = _start(gram, plan.start)
    gram = scale * gram * jnp.swapaxes(scale, -2, -1)
    if not plan.rounds:
        return y * scale
    total, last = None, len(plan.rounds) - 1
    for i, coefficients in enumerate(plan.rounds):
        factor = _polynomial(gram, coefficients)
        if plan.gram:
            total = factor if total is None else _commuting(total, factor)
            if i < last:
                gram = _commuting(_commuting(gram, factor), factor)
            continue
        y = _product(factor * jnp.swapaxes(scale, -2, -1) if i == 0 else factor, y)
        if i < last:
            gram = _gram(y)
    return y if total is None else _product(total * jnp.swapaxes(scale, -2, -1), y)


def _polynomial(gram: Array, coefficients: polar.Round) -> Array:
    """a + b G + c G^2 [*n, k, k]."""
    a, b, c = coefficients
    factor = a * jnp.eye(gram.shape[-1], dtype=gram.dtype) + b * gram
    return factor + c * _commuting(gram, gram) if c else factor


def _start(gram: Array, start: str) -> Array:
    """What the rows of the matrix are multiplied by, [*n, 1, 1] or [*n, k, 1], so that
    no singular value is above one."""
    if start == "rows":
        bound = jnp.sum(jnp.abs(gram), axis=-1, keepdims=True)
    elif start == "schatten":
        square = jnp.sum(jnp.square(gram), axis=(-2, -1), keepdims=True)
        bound = jnp.sqrt(jnp.where(square > 0.0, square, 1.0))
    else:
        bound = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    return jax.lax.rsqrt(jnp.where(bound > 0.0, bound, 1.0))


def _decorrelate(y: Array, passes: int) -> Array:
    """Gram-Schmidt with the inner products of the rows as they came: rows of length
    one, the lower triangle of their Gram matrix solved away, rows of length one."""
    for _ in range(passes):
        y = _unit_rows(y, 0.0)
        y = jax.lax.linalg.triangular_solve(
            _gram(y), y, left_side=True, lower=True, unit_diagonal=True
        )
        y = _unit_rows(y, SMALL_ROW)
    return y


def _unit_rows(y: Array, least: float) -> Array:
    square = jnp.sum(jnp.square(y), axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0.0, square, 1.0))
    return y / jnp.maximum(norm, least)


def _gram(y: Array) -> Array:
    return _symmetric(y, y, _outer)


def _commuting(a: Array, b: Array) -> Array:
    """a b of two polynomials in one symmetric matrix [*n, k, k]."""
    return _symmetric(a, b, _product)


def _symmetric(a: Array, b: Array, whole: Callable[[Array, Array], Array]) -> Array:
    """a b^T [*n, k, k], known to be symmetric: on a CPU, of a large one only the lower
    triangle of blocks is multiplied. Else `whole`: where b is symmetric but for
    rounding, a b and not a b^T, through which rounding errors would grow."""
    blocks = polar.blocks(a.shape[-2], a.shape[-1])
    if blocks == 1:
        return whole(a, b)
    triangle = functools.partial(_triangle, blocks=blocks)
    return jax.lax.platform_dependent(a, b, cpu=triangle, default=whole)


def _triangle(a: Array, b: Array, blocks: int) -> Array:
    if blocks == 1:
        return _outer(a, b)
    half = -(-a.shape[-2] // (2 * GRAIN)) * GRAIN
    (a0, a1), (b0, b1) = (jnp.split(x, [half], -2) for x in (a, b))
    first, last = _triangle(a0, b0, blocks // 2), _triangle(a1, b1, blocks // 2)
    low = _outer(a1, b0)
    return jnp.block([[first, jnp.swapaxes(low, -2, -1)], [low, last]])


def _outer(a: Array, b: Array) -> Array:
    """a b^T. On a CPU, columns of a copy would be slower."""
    return _product(a, jnp.swapaxes(b, -2, -1))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
