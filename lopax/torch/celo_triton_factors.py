"""Triton kernels for Celo's row and column statistics.

A tensor is [A, X, B, Y, C] (`native.blocks.Blocks`); `U` arrays lack X, `W` arrays lack
Y. Sums over an axis are cut into chunks, whose partial sums are added in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lopax.torch.triton_tables import (
    AT_CHUNKS_U,
    AT_CHUNKS_W,
    AT_GROUPS_Q,
    AT_GROUPS_R,
    AT_HIDDEN_U,
    AT_HIDDEN_W,
    AT_INNER_U,
    AT_INNER_W,
    AT_LENGTH_X,
    AT_LENGTH_Y,
    AT_NU,
    AT_NW,
    AT_ROW_OVER_X,
    AT_SCALE_U,
    AT_SCALE_W,
    AT_SUM_U,
    AT_SUM_W,
    AT_VECTOR,
    COL_AT,
    GRAD_AT,
    ROW_AT,
    field,
    gradient,
    pointer,
)

ROW_W0 = tl.constexpr(18 * 4)  # where things are in the packed meta-parameters
COL_W0 = tl.constexpr(ROW_W0 + 6 * 4)
B0 = tl.constexpr(COL_W0 + 6 * 4)


@triton.jit
def factor_sums(
    geometry,
    pointers,
    work,  # [programs, 4] tensor, over Y instead of X, tile of outputs, chunk
    scratch,
    flaw,  # [] int32, set to 1 if a gradient is not finite
    limit,
    GRAD: tl.constexpr,
    OUT: tl.constexpr,
    RED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Partial sums of g^2 over CHUNK positions of one factored axis."""
    item = work + tl.program_id(0) * 4
    tensor, over_y = tl.load(item).to(tl.int64), tl.load(item + 1)
    tile, chunk = tl.load(item + 2), tl.load(item + 3)
    if over_y != 0:
        inner = field(geometry, tensor, AT_INNER_W)
        length = field(geometry, tensor, AT_LENGTH_Y)
        outputs = field(geometry, tensor, AT_NW)
        into = field(geometry, tensor, AT_SUM_W)
    else:
        inner = field(geometry, tensor, AT_INNER_U)
        length = field(geometry, tensor, AT_LENGTH_X)
        outputs = field(geometry, tensor, AT_NU)
        into = field(geometry, tensor, AT_SUM_U)
    grad = pointer(pointers, tensor, GRAD_AT, GRAD)
    out = tile * OUT + tl.arange(0, OUT).to(tl.int64)
    known = out < outputs
    base = (out // inner) * (length * inner) + out % inner
    total = tl.zeros([OUT], tl.float32)
    faults = tl.zeros([OUT], tl.int32)
    for start in range(0, CHUNK, RED):
        at = chunk * CHUNK + start + tl.arange(0, RED)
        inside = at < length
        if inner == 1:  # the summed axis is contiguous: let it be the tile's fast axis
            mask = known[:, None] & inside[None, :]
            g, bad = gradient(grad, base[:, None] + at[None, :], mask, limit)
            total += tl.sum(g * g, axis=1)
            faults += tl.sum(bad.to(tl.int32), axis=1)
        else:
            mask = inside[:, None] & known[None, :]
            g, bad = gradient(grad, base[None, :] + at[:, None] * inner, mask, limit)
            total += tl.sum(g * g, axis=0)
            faults += tl.sum(bad.to(tl.int32), axis=0)
    tl.store(scratch + into + chunk.to(tl.int64) * outputs + out, total, mask=known)
    if tl.sum(faults, axis=0) > 0:
        tl.store(flaw, 1)  # every program that stores, stores the same


@triton.jit
def _moment(moments, sums, chunks, n, inverse, rate, offsets, mask):
    """One moment moved towards its sum / length, and stored."""
    total = tl.zeros_like(tl.load(sums + offsets, mask=mask, other=0.0))
    for c in range(0, chunks):
        total += tl.load(sums + c * n + offsets, mask=mask, other=0.0)
    m = tl.load(moments + offsets, mask=mask, other=0.0)
    m += rate * (total * inverse + 1e-30 - m)
    tl.store(moments + offsets, m, mask=mask)
    return m


@triton.jit
def _normal(squares, n, eps):
    return tl.rsqrt(eps + tl.sum(squares, axis=0) / n.to(tl.float32))


@triton.jit
def factor(
    geometry,
    pointers,
    scratch,
    theta,
    rates,  # [3]
    alive,
    channel_eps,
    BLOCK: tl.constexpr,
):
    """Program (tensor, 0 or 1): the row or the column moments, their contribution to
    the first layer, and the columns' scale. A vector's program 0 does all."""
    tensor, is_col = tl.program_id(0).to(tl.int64), tl.program_id(1)
    vector = field(geometry, tensor, AT_VECTOR)
    if (tl.load(alive) != 0.0) & ((vector == 0) | (is_col == 0)):
        over_x = field(geometry, tensor, AT_ROW_OVER_X) != is_col
        over_x = over_x & (vector == 0)
        if over_x:
            n = field(geometry, tensor, AT_NU)
            length = field(geometry, tensor, AT_LENGTH_X)
            chunks = field(geometry, tensor, AT_CHUNKS_U)
            sums = field(geometry, tensor, AT_SUM_U)
            scale = field(geometry, tensor, AT_SCALE_U)
            hidden = field(geometry, tensor, AT_HIDDEN_U)
        else:
            n = field(geometry, tensor, AT_NW)
            length = field(geometry, tensor, AT_LENGTH_Y)
            chunks = field(geometry, tensor, AT_CHUNKS_W)
            sums = field(geometry, tensor, AT_SUM_W)
            scale = field(geometry, tensor, AT_SCALE_W)
            hidden = field(geometry, tensor, AT_HIDDEN_W)
        row = pointer(pointers, tensor, ROW_AT, tl.float32)
        col = pointer(pointers, tensor, COL_AT, tl.float32)
        moments = row
        if is_col != 0:
            moments = col
        inverse = 1.0 / length.to(tl.float32)
        r0, r1, r2 = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2)
        s0 = tl.zeros([BLOCK], tl.float32)
        s1, s2, s3, s4, s5 = s0, s0, s0, s0, s0
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            ok = i < n
            m0 = _moment(moments, scratch + sums, chunks, n, inverse, r0, i, ok)
            m1 = _moment(moments + n, scratch + sums, chunks, n, inverse, r1, i, ok)
            m2 = _moment(moments + 2 * n, scratch + sums, chunks, n, inverse, r2, i, ok)
            s0 += tl.where(ok, m0 * m0, 0.0)
            s1 += tl.where(ok, m1 * m1, 0.0)
            s2 += tl.where(ok, m2 * m2, 0.0)
            s3 += tl.where(ok, 1.0 / (m0 + 1e-8), 0.0)
            s4 += tl.where(ok, 1.0 / (m1 + 1e-8), 0.0)
            s5 += tl.where(ok, 1.0 / (m2 + 1e-8), 0.0)
        f0 = _normal(s0, n, channel_eps)
        f1 = _normal(s1, n, channel_eps)
        f2 = _normal(s2, n, channel_eps)
        f3 = _normal(s3, n, channel_eps)
        f4 = _normal(s4, n, channel_eps)
        f5 = _normal(s5, n, channel_eps)
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            ok = i < n
            m0 = tl.load(moments + i, mask=ok, other=1.0)
            m1 = tl.load(moments + n + i, mask=ok, other=1.0)
            m2 = tl.load(moments + 2 * n + i, mask=ok, other=1.0)
            q0, q1 = tl.rsqrt(m0 + 1e-8), tl.rsqrt(m1 + 1e-8)
            q2 = tl.rsqrt(m2 + 1e-8)
            for j in tl.static_range(4):
                w = theta + COL_W0 + j
                b = 0.0
                if is_col == 0:
                    w = theta + ROW_W0 + j
                    b = tl.load(theta + B0 + j)
                h = b + f0 * tl.load(w) * m0 + f1 * tl.load(w + 4) * m1
                h += f2 * tl.load(w + 8) * m2 + f3 * tl.load(w + 12) * q0
                h += f4 * tl.load(w + 16) * q1 + f5 * tl.load(w + 20) * q2
                if vector != 0:  # row and column channels are the same
                    v = theta + COL_W0 + j
                    h += f0 * tl.load(v) * m0 + f1 * tl.load(v + 4) * m1
                    h += f2 * tl.load(v + 8) * m2 + f3 * tl.load(v + 12) * q0
                    h += f4 * tl.load(v + 16) * q1 + f5 * tl.load(v + 20) * q2
                tl.store(scratch + hidden + j * n + i, h, mask=ok)
            if (is_col != 0) | (vector != 0):
                extra = tl.where(vector != 0, 1e-9, 0.0)
                into = scratch + scale + i
                tl.store(into, _safe_rsqrt(m0 + extra), mask=ok)
                tl.store(into + n, _safe_rsqrt(m1 + extra), mask=ok)
                tl.store(into + 2 * n, _safe_rsqrt(m2 + extra), mask=ok)


@triton.jit
def _safe_rsqrt(x):
    return tl.rsqrt(tl.maximum(x, 1e-9))


@triton.jit
def row_scales(
    geometry,
    pointers,
    work,  # [programs, 3] tensor, decay, group of the row moment
    scratch,
    alive,
    BLOCK: tl.constexpr,
):
    """1 / sqrt(share of the mean) for one group: the row moment along its axis Q."""
    if tl.load(alive) != 0.0:
        item = work + tl.program_id(0) * 3
        tensor = tl.load(item).to(tl.int64)
        decay, group = tl.load(item + 1).to(tl.int64), tl.load(item + 2).to(tl.int64)
        q = field(geometry, tensor, AT_GROUPS_Q)
        r = field(geometry, tensor, AT_GROUPS_R)
        n, into = field(geometry, tensor, AT_NW), field(geometry, tensor, AT_SCALE_W)
        if field(geometry, tensor, AT_ROW_OVER_X) != 0:
            n = field(geometry, tensor, AT_NU)
            into = field(geometry, tensor, AT_SCALE_U)
        base = decay * n + (group // r) * (q * r) + group % r
        row = pointer(pointers, tensor, ROW_AT, tl.float32) + base
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, q, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total += tl.load(row + i * r, mask=i < q, other=0.0)
        mean = tl.sum(total, axis=0) / q.to(tl.float32) + 1e-9
        for start in range(0, q, BLOCK):
            i = start + tl.arange(0, BLOCK)
            share = tl.load(row + i * r, mask=i < q, other=1.0) / mean
            tl.store(scratch + into + base + i * r, _safe_rsqrt(share), mask=i < q)
