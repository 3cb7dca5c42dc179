"""Affine maps and the LSTM cell of the rules' schedulers.

One vector goes through a layer as multiply-and-sum, so that neither TF32 nor autocast
can reach it; rows (one per tensor) as a matrix product outside autocast, which follows
`torch.set_float32_matmul_precision` (full float32 unless the program lowers it).
"""

from __future__ import annotations

import torch
from torch import Tensor

Theta = dict[str, Tensor]


def layer_shapes(path: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the meta-parameters of `affine(theta, path, x)`."""
    return {f"{path}/w": (fan_in, fan_out), f"{path}/b": (fan_out,)}


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in float32 also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def affine(theta: Theta, path: str, x: Tensor) -> Tensor:
    """x w + b with w [i, o]; x is [i] or [N, i]."""
    w, b = theta[f"{path}/w"], theta[f"{path}/b"]
    if x.ndim == 1:
        return (x.unsqueeze(1) * w).sum(0) + b
    return product(x, w) + b


def lstm(
    theta: Theta, path: str, x: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """The next hidden state and cell; all [n] or [N, n].

    Gates in the order i, g, f, o; the forget bias of +1 belongs to the formula.
    """
    gates = affine(theta, path, torch.cat([x, hidden], -1))
    i, g, f, o = gates.chunk(4, -1)
    cell = torch.sigmoid(f + 1.0) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell
