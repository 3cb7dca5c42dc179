"""How large a tensor counts where a rule's step is relative to its size.

A step proportional to a tensor's root mean square keeps a tensor of zeros at zero (the
B of a low-rank adapter, a last layer, a learned mean), and lets one whose gradient
keeps its sign grow exponentially (a network whose loss has no lower bound). So the size
is kept between two multiples of what tensors of that shape usually start with.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

FLOOR, VECTOR_FLOOR, LIMIT = 0.1, 0.01, 100.0
"""What bundled weights bring. No tensor of the published runs that can be checked is
outside, but for biases that start at zero."""


LARGEST = 1e18
"""The size of a tensor counts as no more, with a limit or without: its square, and
what a rule makes of it, stay within float32."""


SMALLEST = 1.0 / 64.0
"""Limits go by no usual size below this: in JAX the fan-in of a table of embeddings is
its number of entries, and one of standard normal numbers is as usual as any."""


class SizeBounds(NamedTuple):
    """In multiples of the usual size."""

    floor: float = 0.0
    vector_floor: float = 0.0
    limit: float = math.inf

    @classmethod
    def to(cls, floor: float, vector_floor: float, limit: float | None) -> SizeBounds:
        """With None for no limit."""
        return cls(floor, vector_floor, math.inf if limit is None else limit)

    def of(
        self, shape: tuple[int, ...], matrix: tuple[int, ...] = (-2, -1)
    ) -> tuple[float, float]:
        """The least and the largest size of a tensor; arguments as `usual_size`."""
        return _of(self, tuple(shape), matrix)


@functools.lru_cache(maxsize=4096)
def _of(
    bounds: SizeBounds, shape: tuple[int, ...], matrix: tuple[int, ...]
) -> tuple[float, float]:
    floor = bounds.floor if len(shape) > 1 else bounds.vector_floor
    most = bounds.limit * limited_size(shape, matrix)
    return floor * usual_size(shape, matrix), min(most, LARGEST)


def usual_size(shape: tuple[int, ...], matrix: tuple[int, ...] = (-2, -1)) -> float:
    """Root mean square of the usual random start: 1 / sqrt(fan-in); 1 for vectors.

    **Arguments:**

    - `shape`: of rank one or more. With four or more axes, all but those of the matrix
        are a convolution's window, with three they are a stack.
    - `matrix`: the axes of inputs and outputs.
    """
    if len(shape) < 2:
        return 1.0
    fan_in = shape[matrix[0]]
    if len(shape) > 3:
        fan_in = math.prod(shape) / max(shape[matrix[1]], 1)
    return 1.0 / math.sqrt(max(fan_in, 1))


def limited_size(shape: tuple[int, ...], matrix: tuple[int, ...] = (-2, -1)) -> float:
    """The usual size that limits go by; arguments as `usual_size`."""
    return max(usual_size(shape, matrix), SMALLEST)
