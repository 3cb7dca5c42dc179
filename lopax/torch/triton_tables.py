"""How Triton programs find their tensor: tables of geometry and of pointers.

All tensors of a step share a launch. A program reads its place from a work list, the
tensor's geometry (`FIELDS`) and addresses from tables; so the number of launches does
not depend on the number of tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of the geometry table; `cuda_tables.py` fills them by these names.
FIELDS = (
    "n",
    "inner_u",  # B Y C: a sum over X has stride inner_u
    "length_x",
    "inner_w",  # C: a sum over Y has stride inner_w
    "length_y",
    "nu",
    "nw",
    "vector",
    "row_over_x",
    "chunks_u",
    "chunks_w",
    "groups_q",  # the row moment is [P, Q, R], Q the second largest axis
    "groups_r",
    "sum_u",  # offsets into the scratch memory, in floats
    "sum_w",
    "scale_u",
    "scale_w",
    "hidden_u",
    "hidden_w",
    "folded",
    "squares",
    "items",
)
(
    AT_N,
    AT_INNER_U,
    AT_LENGTH_X,
    AT_INNER_W,
    AT_LENGTH_Y,
    AT_NU,
    AT_NW,
    AT_VECTOR,
    AT_ROW_OVER_X,
    AT_CHUNKS_U,
    AT_CHUNKS_W,
    AT_GROUPS_Q,
    AT_GROUPS_R,
    AT_SUM_U,
    AT_SUM_W,
    AT_SCALE_U,
    AT_SCALE_W,
    AT_HIDDEN_U,
    AT_HIDDEN_W,
    AT_FOLDED,
    AT_SQUARES,
    AT_ITEMS,
) = (tl.constexpr(i) for i in range(len(FIELDS)))
COLUMNS = tl.constexpr(len(FIELDS))
PARAM_AT, GRAD_AT, MOMENTA_AT, SECOND_AT, ROW_AT, COL_AT = (
    tl.constexpr(i) for i in range(6)
)
POINTERS = tl.constexpr(6)


@triton.jit
def field(geometry, tensor, index: tl.constexpr):
    return tl.load(geometry + tensor * COLUMNS + index)


@triton.jit
def pointer(pointers, tensor, index: tl.constexpr, dtype: tl.constexpr):
    address = tl.load(pointers + tensor * POINTERS + index)
    return address.to(tl.pointer_type(dtype))


@triton.jit
def work_item(geometry, work):
    """What a program does, of a list [programs, 2]: tensor, item, and the number of
    the tensor's elements."""
    place = work + tl.program_id(0) * 2
    tensor, item = tl.load(place).to(tl.int64), tl.load(place + 1)
    return tensor, item, field(geometry, tensor, AT_N)


@triton.jit
def arrays(pointers, tensor, PARAM: tl.constexpr, GRAD: tl.constexpr):
    """Parameter, gradient, momenta and second moment."""
    param = pointer(pointers, tensor, PARAM_AT, PARAM)
    grad = pointer(pointers, tensor, GRAD_AT, GRAD)
    momenta = pointer(pointers, tensor, MOMENTA_AT, tl.float32)
    return param, grad, momenta, pointer(pointers, tensor, SECOND_AT, tl.float32)


@triton.jit
def clip(x, limit):
    return tl.minimum(tl.maximum(x, -limit), limit)


@triton.jit
def gradient(pointer, offsets, mask, limit):
    """Clipped to +-limit, and whether it is not finite."""
    g = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    bad = (g != g) | (tl.abs(g) == float("inf"))
    return clip(g, limit), bad
