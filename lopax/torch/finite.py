"""Whether tensors are finite, in ways that are fast on each device.

On a CPU a value can be asked for at once, and asking saves passes over memory; torch's
own tests of every element, and its maximum norm, are ten times slower there than a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_foreach_norm: Any = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]


class Look(NamedTuple):
    """What was seen of some tensors."""

    bad: Tensor  # [] bool: some value is infinite or NaN
    within: bool = False  # surely no value is larger than the bound


def can_ask(x: Tensor) -> bool:
    """Whether values of x can decide what is run: on a CPU, outside of graphs."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def some_not_finite(x: Tensor) -> Tensor:
    """[] bool: some value is infinite or NaN."""
    if can_ask(x) and math.isfinite(torch.linalg.vector_norm(x)):
        return torch.zeros((), dtype=torch.bool, device=x.device)
    return look([x], math.inf).bad if x.numel() else x.new_zeros((), dtype=torch.bool)


def look(tensors: Sequence[Tensor], bound: float) -> Look:
    """Whether values are finite and, where that costs nothing, within a bound; of
    tensors likewise."""
    if can_ask(tensors[0]):
        # Large values may leave float's range in a norm, so that is not the last word.
        norms = torch.stack([n.float() for n in _foreach_norm([*tensors], 2)])
        total = float(norms.sum())
        if math.isfinite(total):
            none = torch.zeros((), dtype=torch.bool, device=norms.device)
            # No element is larger than the norm of all.
            return Look(none, total <= bound or float(norms.max()) <= bound)
        extremes = [torch.stack(torch.aminmax(x)).float() for x in tensors]
        return Look(~torch.stack(extremes).isfinite().all())
    norms = _foreach_norm([*tensors], float("inf"))
    return Look(~torch.stack([n.float() for n in norms]).isfinite().all())
