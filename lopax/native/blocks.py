"""A tensor as the kernels index it."""

from __future__ import annotations

import math
from typing import NamedTuple


class Blocks(NamedTuple):
    """A contiguous tensor seen as [A, X, B, Y, C], X and Y its factored axes.

    The fused kernels index with these five numbers, whatever the rank. A sum over X
    has shape [A, B, Y, C] and a sum over Y has [A, X, B, C], in storage order. A
    vector is [1, n, 1, 1, 1].
    """

    a: int
    x: int
    b: int
    y: int
    c: int
    row_over_x: bool  # the row moment (sum over d0) is the sum over X

    @classmethod
    def of(cls, shape: tuple[int, ...], axes: tuple[int, int] | None) -> Blocks:
        if axes is None:
            return cls(1, math.prod(shape), 1, 1, 1, False)
        first, second = sorted(axes)
        return cls(
            math.prod(shape[:first]),
            shape[first],
            math.prod(shape[first + 1 : second]),
            shape[second],
            math.prod(shape[second + 1 :]),
            axes[1] == first,
        )
