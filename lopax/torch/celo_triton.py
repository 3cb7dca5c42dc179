"""Triton kernels for Celo's elements: the statistics pass and the apply pass.

Imported only where Triton is installed. The formulas are those of celo.py; the row and
column statistics come from celo_triton_factors.py. No float is added atomically:
partial sums go to memory and are added in a fixed order, so a step gives the same bits
every time. `alive` is 0 for a step that must change nothing; then kernels that write
return.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lopax.torch.triton_tables import (
    AT_FOLDED,
    AT_HIDDEN_U,
    AT_HIDDEN_W,
    AT_INNER_U,
    AT_INNER_W,
    AT_ITEMS,
    AT_LENGTH_X,
    AT_LENGTH_Y,
    AT_N,
    AT_NU,
    AT_NW,
    AT_SCALE_U,
    AT_SCALE_W,
    AT_SQUARES,
    AT_VECTOR,
    ROW_AT,
    arrays,
    clip,
    field,
    gradient,
    pointer,
    work_item,
)

CHANNELS = tl.constexpr(18)
W1 = tl.constexpr((18 + 6 + 6) * 4 + 4)  # where things are in the packed theta
B1 = tl.constexpr(W1 + 16)
W2 = tl.constexpr(B1 + 4)
B2 = tl.constexpr(W2 + 8)


@triton.jit
def _values(param, momenta, second, n, e, mask):
    """Parameter, momenta and second moment of elements `e`."""
    p = tl.load(param + e, mask=mask, other=0.0).to(tl.float32)
    m0 = tl.load(momenta + e, mask=mask, other=0.0)
    m1 = tl.load(momenta + n + e, mask=mask, other=0.0)
    m2 = tl.load(momenta + 2 * n + e, mask=mask, other=0.0)
    return p, m0, m1, m2, tl.load(second + e, mask=mask, other=0.0)


@triton.jit
def _factor_at(geometry, pointers, tensor, scratch, e, mask, vector_eps):
    """Where elements `e` find their U and W entries; the factors of the gradient and
    of the momenta, which differ for vectors."""
    inner_u = field(geometry, tensor, AT_INNER_U)
    length_x = field(geometry, tensor, AT_LENGTH_X)
    inner_w = field(geometry, tensor, AT_INNER_W)
    length_y = field(geometry, tensor, AT_LENGTH_Y)
    nu, nw = field(geometry, tensor, AT_NU), field(geometry, tensor, AT_NW)
    small_u, small_w = inner_u.to(tl.int32), inner_w.to(tl.int32)
    u = (e // (length_x * inner_u).to(tl.int32)) * small_u + e % small_u
    w = (e // (length_y * inner_w).to(tl.int32)) * small_w + e % small_w
    known_u = tl.where(mask, nu, 0) > 0  # a vector has no U arrays
    at_u = scratch + field(geometry, tensor, AT_SCALE_U) + u
    at_w = scratch + field(geometry, tensor, AT_SCALE_W) + w
    f0 = tl.load(at_u, mask=known_u, other=1.0) * tl.load(at_w, mask=mask, other=0.0)
    f1 = tl.load(at_u + nu, mask=known_u, other=1.0)
    f1 *= tl.load(at_w + nw, mask=mask, other=0.0)
    f2 = tl.load(at_u + 2 * nu, mask=known_u, other=1.0)
    f2 *= tl.load(at_w + 2 * nw, mask=mask, other=0.0)
    g0, g1, g2 = f0, f1, f2
    if field(geometry, tensor, AT_VECTOR) != 0:
        n = field(geometry, tensor, AT_N)
        full = pointer(pointers, tensor, ROW_AT, tl.float32) + e
        f0 = tl.rsqrt(tl.load(full, mask=mask, other=1.0) + vector_eps)
        f1 = tl.rsqrt(tl.load(full + n, mask=mask, other=1.0) + vector_eps)
        f2 = tl.rsqrt(tl.load(full + 2 * n, mask=mask, other=1.0) + vector_eps)
    return u, w, known_u, g0, g1, g2, f0, f1, f2


@triton.jit
def update(
    geometry,
    pointers,
    work,  # [programs, 2] tensor, item
    scratch,
    rates,  # [4] momenta, second moment
    alive,
    limit,
    second_eps,
    vector_eps,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEM: tl.constexpr,
):
    """The statistics pass: accumulators, and each channel's sum of squares."""
    if tl.load(alive) != 0.0:
        tensor, item, n = work_item(geometry, work)
        param, grad, momenta, second = arrays(pointers, tensor, PARAM, GRAD)
        k0, k1 = tl.load(rates), tl.load(rates + 1)
        k2, ks = tl.load(rates + 2), tl.load(rates + 3)
        a0 = tl.zeros([BLOCK], tl.float32)
        a1, a2, a3, a4, a5, a6, a7, a8 = a0, a0, a0, a0, a0, a0, a0, a0
        a9, a10, a11, a12, a13, a14, a15, a16, a17 = a0, a0, a0, a0, a0, a0, a0, a0, a0
        for start in range(0, ITEM, BLOCK):
            e = item * ITEM + start + tl.arange(0, BLOCK)
            ok = e < n
            g, _ = gradient(grad, e, ok, limit)
            p, m0, m1, m2, s = _values(param, momenta, second, n, e, ok)
            m0 += k0 * (g - m0)
            m1 += k1 * (g - m1)
            m2 += k2 * (g - m2)
            s += ks * (g * g - s)
            tl.store(momenta + e, m0, mask=ok)
            tl.store(momenta + n + e, m1, mask=ok)
            tl.store(momenta + 2 * n + e, m2, mask=ok)
            tl.store(second + e, s, mask=ok)
            _, _, _, g0, g1, g2, f0, f1, f2 = _factor_at(
                geometry, pointers, tensor, scratch, e, ok, vector_eps
            )
            q = tl.where(ok, tl.rsqrt(s + second_eps), 0.0)
            c = clip(g, 0.1)
            a0 += g * g
            a1 += c * c
            a2 += p * p
            a3 += m0 * m0
            a4 += m1 * m1
            a5 += m2 * m2
            a6 += s * s
            a7 += (m0 * q) * (m0 * q)
            a8 += (m1 * q) * (m1 * q)
            a9 += (m2 * q) * (m2 * q)
            a10 += q * q
            a11 += (g * g0) * (g * g0)
            a12 += (g * g1) * (g * g1)
            a13 += (g * g2) * (g * g2)
            a14 += (g * q) * (g * q)
            a15 += (m0 * f0) * (m0 * f0)
            a16 += (m1 * f1) * (m1 * f1)
            a17 += (m2 * f2) * (m2 * f2)
        squares = scratch + field(geometry, tensor, AT_SQUARES)
        into = squares + item.to(tl.int64) * CHANNELS
        tl.store(into, tl.sum(a0, axis=0))
        tl.store(into + 1, tl.sum(a1, axis=0))
        tl.store(into + 2, tl.sum(a2, axis=0))
        tl.store(into + 3, tl.sum(a3, axis=0))
        tl.store(into + 4, tl.sum(a4, axis=0))
        tl.store(into + 5, tl.sum(a5, axis=0))
        tl.store(into + 6, tl.sum(a6, axis=0))
        tl.store(into + 7, tl.sum(a7, axis=0))
        tl.store(into + 8, tl.sum(a8, axis=0))
        tl.store(into + 9, tl.sum(a9, axis=0))
        tl.store(into + 10, tl.sum(a10, axis=0))
        tl.store(into + 11, tl.sum(a11, axis=0))
        tl.store(into + 12, tl.sum(a12, axis=0))
        tl.store(into + 13, tl.sum(a13, axis=0))
        tl.store(into + 14, tl.sum(a14, axis=0))
        tl.store(into + 15, tl.sum(a15, axis=0))
        tl.store(into + 16, tl.sum(a16, axis=0))
        tl.store(into + 17, tl.sum(a17, axis=0))


@triton.jit
def fold(
    geometry, scratch, theta, sizes, scale, alive, channel_eps, ITEMS: tl.constexpr
):
    """First-layer weights [18, 4] with each channel's normaliser, and the tensor's
    step size behind them, for a size within `sizes` [tensors, 2]. One program a
    tensor."""
    if tl.load(alive) != 0.0:
        tensor = tl.program_id(0).to(tl.int64)
        n, items = field(geometry, tensor, AT_N), field(geometry, tensor, AT_ITEMS)
        squares = scratch + field(geometry, tensor, AT_SQUARES)
        channel = tl.arange(0, 32)
        total = tl.zeros([32], tl.float32)
        for start in range(0, items, ITEMS):
            i = start + tl.arange(0, ITEMS)
            mask = (i < items)[:, None] & (channel < CHANNELS)[None, :]
            part = tl.load(
                squares + i[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0
            )
            total += tl.sum(part, axis=0)
        mean = total / n.to(tl.float32)
        normal = tl.rsqrt(channel_eps + mean)
        real = channel < CHANNELS
        into = scratch + field(geometry, tensor, AT_FOLDED)
        for j in tl.static_range(4):
            w = tl.load(theta + channel * 4 + j, mask=real, other=0.0)
            tl.store(into + channel * 4 + j, w * normal, mask=real)
        square = tl.sum(tl.where(channel == 2, mean, 0.0), axis=0)
        size = tl.maximum(tl.sqrt(square + 1e-9), tl.load(sizes + 2 * tensor))
        size = tl.minimum(size, tl.load(sizes + 2 * tensor + 1))
        tl.store(into + CHANNELS * 4, size * tl.load(scale))


@triton.jit
def _feed(h0, h1, h2, h3, weights, channel: tl.constexpr, x):
    w = weights + channel * 4
    h0 += tl.load(w) * x
    h1 += tl.load(w + 1) * x
    h2 += tl.load(w + 2) * x
    h3 += tl.load(w + 3) * x
    return h0, h1, h2, h3


@triton.jit
def _layer(theta, j: tl.constexpr, h0, h1, h2, h3):
    """Unit j of the second hidden layer, rectified."""
    z = tl.load(theta + B1 + j) + tl.load(theta + W1 + j) * h0
    z += tl.load(theta + W1 + 4 + j) * h1 + tl.load(theta + W1 + 8 + j) * h2
    return tl.maximum(z + tl.load(theta + W1 + 12 + j) * h3, 0.0)


@triton.jit
def apply(
    geometry,
    pointers,
    settings,  # [tensors, 3] lr, weight decay, 1 to store the update alone
    work,  # [programs, 2] tensor, item
    scratch,
    theta,
    scale,
    alive,
    exp_mult,
    limit,
    second_eps,
    vector_eps,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEM: tl.constexpr,
):
    """The apply pass: channels again, the MLP, the parameters."""
    if tl.load(alive) != 0.0:
        tensor, item, n = work_item(geometry, work)
        param, grad, momenta, second = arrays(pointers, tensor, PARAM, GRAD)
        nu, nw = field(geometry, tensor, AT_NU), field(geometry, tensor, AT_NW)
        hidden_u = scratch + field(geometry, tensor, AT_HIDDEN_U)
        hidden_w = scratch + field(geometry, tensor, AT_HIDDEN_W)
        weights = scratch + field(geometry, tensor, AT_FOLDED)
        size = tl.load(weights + CHANNELS * 4)
        lr = tl.load(settings + tensor * 3)
        decay = tl.load(settings + tensor * 3 + 1) * tl.load(scale)
        alone = tl.load(settings + tensor * 3 + 2)
        for start in range(0, ITEM, BLOCK):
            e = item * ITEM + start + tl.arange(0, BLOCK)
            ok = e < n
            g, _ = gradient(grad, e, ok, limit)
            p, m0, m1, m2, s = _values(param, momenta, second, n, e, ok)
            u, w, ok_u, g0, g1, g2, f0, f1, f2 = _factor_at(
                geometry, pointers, tensor, scratch, e, ok, vector_eps
            )
            h0 = tl.load(hidden_w + w, mask=ok, other=0.0)
            h1 = tl.load(hidden_w + nw + w, mask=ok, other=0.0)
            h2 = tl.load(hidden_w + 2 * nw + w, mask=ok, other=0.0)
            h3 = tl.load(hidden_w + 3 * nw + w, mask=ok, other=0.0)
            h0 += tl.load(hidden_u + u, mask=ok_u, other=0.0)
            h1 += tl.load(hidden_u + nu + u, mask=ok_u, other=0.0)
            h2 += tl.load(hidden_u + 2 * nu + u, mask=ok_u, other=0.0)
            h3 += tl.load(hidden_u + 3 * nu + u, mask=ok_u, other=0.0)
            q = tl.rsqrt(s + second_eps)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 0, g)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 1, clip(g, 0.1))
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 2, p)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 3, m0)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 4, m1)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 5, m2)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 6, s)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 7, m0 * q)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 8, m1 * q)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 9, m2 * q)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 10, q)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 11, g * g0)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 12, g * g1)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 13, g * g2)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 14, g * q)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 15, m0 * f0)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 16, m1 * f1)
            h0, h1, h2, h3 = _feed(h0, h1, h2, h3, weights, 17, m2 * f2)
            h0, h1 = tl.maximum(h0, 0.0), tl.maximum(h1, 0.0)
            h2, h3 = tl.maximum(h2, 0.0), tl.maximum(h3, 0.0)
            o0 = tl.zeros([BLOCK], tl.float32) + tl.load(theta + B2)
            o1 = tl.zeros([BLOCK], tl.float32) + tl.load(theta + B2 + 1)
            for j in tl.static_range(4):
                z = _layer(theta, j, h0, h1, h2, h3)
                o0 += tl.load(theta + W2 + 2 * j) * z
                o1 += tl.load(theta + W2 + 2 * j + 1) * z
            # No step where there never was a gradient: all accumulators are zero.
            reached = (m0 != 0.0) | (m1 != 0.0) | (m2 != 0.0) | (s != 0.0)
            moved = tl.where(reached, -o0 * tl.exp(exp_mult * o1) * size, 0.0)
            step = lr * (moved - decay * p)
            new = tl.where(alone != 0.0, step, p + step)
            tl.store(param + e, new.to(PARAM), mask=ok)
