"""Contiguous stand-ins for parameters and gradients the fused kernels cannot address.

A kernel writes the update alone into a stand-in, from which it is then added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax.torch.plain import Entry, add

outside_graphs: Any = torch.compiler.disable
"""For code that hands addresses to kernels, which no compiler can trace."""


class Operand(NamedTuple):
    """What a kernel works on for one entry."""

    param: Tensor
    grad: Tensor
    direct: bool  # `param` is the parameter itself


def operands(entries: Sequence[Entry], dtypes: Sequence[torch.dtype]) -> list[Operand]:
    """For each entry, its own tensors where they are contiguous, of one of `dtypes`
    and not negated by a flag only, else float32 copies."""
    found = []
    for e in entries:
        direct = (
            e.param.is_contiguous() and e.param.dtype in dtypes and not e.param.is_neg()
        )
        grad = e.grad.resolve_neg()
        grad = grad if grad.dtype in dtypes else grad.float()
        param = e.param if direct else _copy(e.param)
        found.append(Operand(param, grad.contiguous(), direct))
    return found


def add_updates(entries: Sequence[Entry], found: Sequence[Operand]) -> None:
    """Adds the updates left in stand-ins to their parameters."""
    for e, o in zip(entries, found, strict=True):
        if not o.direct:
            add(e.param, o.param.view(e.param.shape))


def _copy(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.float32, device=x.device).copy_(x)
