"""Large tensors in parts, so that what is made of one stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lopax.rules.form import Place

CPU_PART, GPU_PART = 1 << 15, 1 << 22
"""Elements of a part. A CPU's cache holds few; a GPU wants few launches, and few
megabytes beside the state."""


def cut(place: Place, arrays: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """See `lopax.rules.ops.Ops.parts`."""
    axis, whole = -place.rank, arrays[0]
    arrays = [_quick(x, whole, axis) for x in arrays]
    first = whole.shape[axis]
    most = CPU_PART if whole.device.type == "cpu" else GPU_PART
    length = max(1, most // max(1, whole.numel() // max(1, first)))
    if length >= first or torch.compiler.is_compiling():
        yield arrays
        return
    for at in range(0, first, length):
        n = min(length, first - at)
        yield [x if x.shape[axis] == 1 else x.narrow(axis, at, n) for x in arrays]


def _quick(x: Tensor, whole: Tensor, axis: int) -> Tensor:
    """x, repeated along the tensor's second axis where it varies behind that alone (as
    normalisers of matrices that are stored one inside the other do): what multiplies
    long runs is much faster."""
    if axis > -3 or x.shape[axis] * x.shape[axis + 1] > 1 or x.shape[-1] == 1:
        return x
    sizes = list(x.shape)
    sizes[axis + 1] = whole.shape[axis + 1]
    return x.expand(sizes).contiguous()


def joined(place: Place, parts: Iterable[Tensor], like: Tensor, spare: bool) -> Tensor:
    """See `lopax.rules.ops.Ops.joined`."""
    axis, at, into = -place.rank, 0, like if spare else None
    for part in parts:
        if part.shape == like.shape:
            return part
        if into is None:
            into = torch.empty_like(like)
        into.narrow(axis, at, part.shape[axis]).copy_(part)
        at += part.shape[axis]
    assert into is not None
    return into
