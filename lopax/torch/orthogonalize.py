"""Nearly orthogonal matrices by a Newton-Schulz iteration, also of sharded tensors.

The quintic of Jordan et al. (Muon, 2024), as in `lopax.blocks.orthogonalize`. Its
matrix products follow `torch.set_float32_matmul_precision`; autocast does not reach
them.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from lopax.torch.recurrent import product
from lopax.torch.rule import Sum, TensorBatch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    x: Tensor, batch: TensorBatch, iterations: int = 5, eps: float = 1e-8
) -> Generator[list[Sum], list[Tensor], Tensor]:
    """Approximately U V^T for each matrix X = U S V^T of the tensors x [B, *s].

    The matrices lie in the axes `batch.matrix`. The Gram matrix is that of the shorter
    side, unless the shorter side is the one that is sharded: only a sum over the cut
    axis can be completed.
    """
    rows, cols = batch.matrix
    if batch.cut == rows or (
        batch.cut != cols and batch.shape[rows] > batch.shape[cols]
    ):
        rows, cols = cols, rows
    y = x.movedim((1 + rows, 1 + cols), (-2, -1)).contiguous()
    (square,) = yield [Sum(y.square().sum((-2, -1), keepdim=True), (rows, cols))]
    y = y / (torch.sqrt(square) + eps)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        (gram,) = yield [Sum(product(y, y.mT), (cols,))]
        y = a * y + product(b * gram + c * product(gram, gram), y)
    return y.movedim((-2, -1), (1 + rows, 1 + cols))
