"""Celo's step for one tensor as one call, for the backends that have a kernel.

The kernel takes theta, scale and guard flag as operands and is batched by XLA's FFI,
so that `vmap` over particles and thetas becomes one call over a batch. Its derivative
is that of the plain rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax.blocks.accumulators import factored_dims
from lopax.kernels import build

_TARGET = "lopax_celo_step"


class KernelSettings(NamedTuple):
    """The static part of the rule."""

    momentum_decays: tuple[float, ...]  # three
    factored_decays: tuple[float, ...]  # three
    second_decay: float
    exp_mult: float
    grad_clip: float


class FactoredLayout(NamedTuple):
    """A tensor as [A, X, B, Y, C] with X and Y its factored dimensions."""

    dims: tuple[int, int, int, int, int]
    row_is_p: bool  # the row moment varies over X (and not over Y)
    vector: bool  # rank one: no factoring


def layout(shape: tuple[int, ...]) -> FactoredLayout:
    """How the kernel sees a tensor of this shape (rank >= 1)."""
    factored = factored_dims(shape)
    if factored is None:
        return FactoredLayout((1, 1, 1, 1, math.prod(shape)), True, True)
    d1, d0 = factored
    first, second = min(d1, d0), max(d1, d0)
    dims = (
        math.prod(shape[:first]),
        shape[first],
        math.prod(shape[first + 1 : second]),
        shape[second],
        math.prod(shape[second + 1 :]),
    )
    return FactoredLayout(dims, d1 < d0, False)


def available() -> bool:
    """Whether the CPU kernel can be used here (compiles it on the first call)."""
    return build.load("celo_cpu", "LopaxCeloStep", _TARGET)


def step(
    settings: KernelSettings,
    plain: Callable[..., tuple[Any, ...]],
    operands: tuple[Array, ...],
) -> tuple[Array, ...]:
    """(delta, momenta, second, row, col, full), as `plain(*operands)` computes them.

    **Arguments:**

    - `operands`: grad [*s] unclipped, param [*s], momenta [3, *s], second [*s], row,
        col, full (see `blocks.accumulators.Factored`), rule [154] float32 (the MLP's
        arrays flattened: w0, b0, w1, b1, w2, b2), scale [], finite [] float32 (0: keep
        the state and do not move).
    - `plain`: the reference, used on every platform but the CPU and for derivatives.
    """

    @jax.custom_jvp
    def run(*operands: Array) -> tuple[Array, ...]:
        return jax.lax.platform_dependent(
            *operands, cpu=lambda *o: _call(settings, *o), default=plain
        )

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> Any:
        return jax.jvp(plain, primals, tangents)

    return run(*operands)


def _call(settings: KernelSettings, *operands: Array) -> tuple[Array, ...]:
    grad, param, momenta, second, row, col, full, rule, scale, finite = operands
    where = layout(grad.shape)
    if where.vector:
        p_state, q_state = full, row
    else:
        p_state, q_state = (row, col) if where.row_is_p else (col, row)
    outputs = (param, momenta, second, p_state, q_state)
    call = jax.ffi.ffi_call(
        _TARGET,
        [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in outputs],
        vmap_method="broadcast_all",
        input_output_aliases={2: 1, 3: 2, 4: 3, 5: 4},  # the state, in place
    )
    delta, momenta, second, p_state, q_state = call(
        grad,
        param,
        momenta,
        second,
        p_state,
        q_state,
        rule,
        scale,
        finite,
        dims=np.asarray(where.dims, np.int64),
        decays=np.asarray(
            settings.momentum_decays + settings.factored_decays, np.float32
        ),
        second_decay=np.float32(settings.second_decay),
        exp_mult=np.float32(settings.exp_mult),
        grad_clip=np.float32(settings.grad_clip),
        row_is_p=bool(where.row_is_p),
        vector=bool(where.vector),
    )
    if where.vector:
        return delta, momenta, second, row, col, p_state
    row, col = (p_state, q_state) if where.row_is_p else (q_state, p_state)
    return delta, momenta, second, row, col, full
