"""Triton kernels for Celo-Adam: all tensors of a step in each launch.

Imported only where Triton is installed. The formulas are those of celo_adam.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lopax.torch.triton_tables import (
    GRAD_AT,
    arrays,
    gradient,
    pointer,
    work_item,
)


@triton.jit
def find_flaw(
    geometry,
    pointers,
    work,
    flaw,
    limit,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEM: tl.constexpr,
):
    """Sets `flaw` to 1 if a gradient is not finite."""
    tensor, item, n = work_item(geometry, work)
    grad = pointer(pointers, tensor, GRAD_AT, GRAD)
    faults = tl.zeros([BLOCK], tl.int32)
    for start in range(0, ITEM, BLOCK):
        e = item * ITEM + start + tl.arange(0, BLOCK)
        _, bad = gradient(grad, e, e < n, limit)
        faults += bad.to(tl.int32)
    if tl.sum(faults, axis=0) > 0:
        tl.store(flaw, 1)


@triton.jit
def adam(
    geometry,
    pointers,
    settings,  # [tensors, 3] lr, weight decay, 1 to store the update alone
    corrections,  # [tensors, 2] of the bias of momentum and second moment
    work,
    scale,
    alive,
    rate1,
    rate2,
    limit,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEM: tl.constexpr,
):
    """Celo-Adam's whole step."""
    if tl.load(alive) != 0.0:
        tensor, item, n = work_item(geometry, work)
        param, grad, momentum, second = arrays(pointers, tensor, PARAM, GRAD)
        correction1 = tl.load(corrections + tensor * 2)
        correction2 = tl.load(corrections + tensor * 2 + 1)
        rate = tl.load(scale)
        lr = tl.load(settings + tensor * 3)
        decay = tl.load(settings + tensor * 3 + 1)
        alone = tl.load(settings + tensor * 3 + 2)
        for start in range(0, ITEM, BLOCK):
            e = item * ITEM + start + tl.arange(0, BLOCK)
            ok = e < n
            g, _ = gradient(grad, e, ok, limit)
            p = tl.load(param + e, mask=ok, other=0.0).to(tl.float32)
            m = tl.load(momentum + e, mask=ok, other=0.0)
            s = tl.load(second + e, mask=ok, other=0.0)
            m += rate1 * (g - m)
            s += rate2 * (g * g - s)
            tl.store(momentum + e, m, mask=ok)
            tl.store(second + e, s, mask=ok)
            root = tl.sqrt(s / correction2 + 1e-10) + 1e-8
            step = -lr * rate * (m / (correction1 * root) + decay * p)
            new = tl.where(alone != 0.0, step, p + step)
            tl.store(param + e, new.to(PARAM), mask=ok)
