"""Matrix products whatever surrounds them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from lopax._core import polar


class Onto(NamedTuple):
    """What a product is added to: beta `to` + alpha a b."""

    to: Tensor
    beta: float = 1.0
    alpha: float = 1.0


def product(a: Tensor, b: Tensor, onto: Onto | None = None) -> Tensor:
    """a @ b, in float32 also under autocast. It follows
    `torch.set_float32_matmul_precision` (full float32 unless the program lowers it)."""
    # To ask is much faster than to switch off what is not on.
    if torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return product(a, b, onto)
    if onto is None:
        return a @ b
    add = torch.baddbmm if a.ndim > 2 else torch.addmm
    return add(onto.to, a, b, beta=onto.beta, alpha=onto.alpha)


def gram(x: Tensor) -> Tensor:
    """x x^T [*n, k, k]. On a CPU, of a large one only the lower triangle of blocks is
    multiplied."""
    blocks = _blocks(x)
    return product(x, x.mT) if blocks == 1 else _triangle(x, x, None, blocks)


def commuting(a: Tensor, b: Tensor, onto: Onto | None = None) -> Tensor:
    """a b of polynomials in one symmetric matrix [*n, k, k], as `gram`; so is `onto`.

    Of small ones it is not a b^T: where b is symmetric but for rounding, rounding
    errors would grow through that.
    """
    blocks = _blocks(a)
    return product(a, b, onto) if blocks == 1 else _triangle(a, b, onto, blocks)


def _blocks(a: Tensor) -> int:
    if a.device.type != "cpu":
        return 1
    return polar.blocks(a.shape[-2], a.shape[-1], a.dtype == torch.bfloat16)


def _triangle(a: Tensor, b: Tensor, onto: Onto | None, blocks: int) -> Tensor:
    """a b^T, known to be symmetric."""
    *several, side, _ = a.shape
    out = a.new_empty(*several, side, side)
    edges = [side * i // blocks for i in range(blocks + 1)]
    for start, end in itertools.pairwise(edges):
        rows = onto and onto._replace(to=onto.to[..., start:end, :end])
        strip = product(a[..., start:end, :], b[..., :end, :].mT, rows)
        out[..., start:end, :end] = strip
        out[..., :start, start:end] = strip[..., :start].mT
    return out
