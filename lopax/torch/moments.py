"""The accumulators of `lopax.rules.moments`, for a batch of tensors.

Three momenta, one second moment and three factored second moments of a gradient, moved
in place. The twin in arithmetic is `lopax.rules.element_plain`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from lopax.rules.element_net import Decays
from lopax.torch.batch import Sum, TensorBatch


class Factors(NamedTuple):
    """Row and column statistics [B, 3, ...] that broadcast to [B, 3, *s]."""

    row: Tensor
    col: Tensor
    row_scale: Tensor
    col_scale: Tensor


def update(
    batch: TensorBatch, decays: Decays, alive: Tensor
) -> Generator[list[Sum], list[Tensor], Factors]:
    """Moves the accumulators by the gradients, and reads off the factored ones.

    With `alive` 0 nothing changes. The moments' 1e-30 is added after the mean; in
    float32 that is the same.
    """
    state, grads = batch.state, batch.grads
    momenta, second, factored = ((1.0 - d) * alive for d in decays)
    square = grads * grads
    _blend(state["momenta"], grads, momenta)
    state["second"].lerp_(square, second.squeeze(0))
    if batch.axes is None:
        full = state["full"]
        _blend(full, square + 1e-30, factored)
        one = torch.ones_like(full[:, :, :1])
        return Factors(full, full, safe_rsqrt(full + 1e-9), one)
    d1, d0 = batch.axes
    row, col = state["row"], state["col"]
    row_sum, col_sum = yield [
        Sum(square.sum(1 + d0), (d0,)),
        Sum(square.sum(1 + d1), (d1,)),
    ]
    del square
    _blend(row, row_sum / batch.shape[d0] + 1e-30, factored)
    _blend(col, col_sum / batch.shape[d1] + 1e-30, factored)
    axis = 2 + (d1 - 1 if d1 > d0 else d1)
    (total,) = yield [Sum(row.sum(axis, keepdim=True), (d1,))]
    mean = total / batch.shape[d1]
    return Factors(
        row=row.unsqueeze(2 + d0),
        col=col.unsqueeze(2 + d1),
        row_scale=safe_rsqrt(row / (mean + 1e-9)).unsqueeze(2 + d0),
        col_scale=safe_rsqrt(col).unsqueeze(2 + d1),
    )


def unreached(momenta: Tensor, second: Tensor) -> Tensor:
    """[B, *s] bool: the elements that never saw a gradient other than zero, whose
    accumulators are zero. They are to stay where they are."""
    return second.eq(0.0).logical_and_(momenta.eq(0.0).all(1))


def safe_rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(max(x, 1e-9))."""
    return torch.rsqrt(x.clamp_min(1e-9))


def _blend(old: Tensor, new: Tensor, weights: Tensor) -> None:
    """old [B, 3, ...] moves towards new [B, ...] by weights [3], in place."""
    old.lerp_(new.unsqueeze(1), weights.reshape(-1, *(1,) * (new.ndim - 1)))
