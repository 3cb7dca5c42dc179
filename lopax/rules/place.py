"""A tensor without its values: what a rule knows of shapes and axes."""

from __future__ import annotations

import math
from typing import NamedTuple

from lopax.rules.ops import Array, Ops, Shape


class Sum(NamedTuple):
    """A sum over some of a tensor's axes, complete only within the local shard."""

    value: Array
    axes: tuple[int, ...]  # of the tensor, counted from 0


class Place(NamedTuple):
    """A tensor without its values. Hashable."""

    shape: Shape  # of the whole tensor, over all shards; rank >= 1
    scalar: bool = False  # to the user it has no axes
    role: str = ""  # one of the rule's `roles`
    reading: tuple[int, ...] = ()  # the axes in the order (*window, in, out)
    cut: int | None = None  # the axis of which this process has only a part

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements, at least one: a divisor of sums."""
        return max(math.prod(self.shape), 1)

    @property
    def sizes(self) -> Shape:
        """The shape in reading order, () for a scalar."""
        return () if self.scalar else tuple(self.shape[a] for a in self.reading)

    @property
    def sides(self) -> tuple[int, int]:
        """(in, out) of the tensor as one matrix: all axes but the last in reading
        order together, and the last. A vector is (1, n)."""
        return math.prod(self.sizes[:-1]), (self.sizes or (1,))[-1]

    @property
    def matrix(self) -> tuple[int, ...]:
        """The axes (in, out); (0,) for vectors."""
        return self.reading[-2:]

    @property
    def factored(self) -> tuple[int, int] | None:
        """(d1, d0): the second largest and the largest axis, by which second moments
        are factored; None for vectors. Ties go by the reading order.

        A stable sort, unlike the published code's, whose choice for tensors of rank
        >= 4 with equal sizes depends on the processor.
        """
        if self.rank < 2:
            return None
        d1, d0 = sorted(self.reading, key=lambda axis: self.shape[axis])[-2:]
        return d1, d0

    @property
    def all_axes(self) -> tuple[int, ...]:
        return tuple(range(self.rank))

    def lead(self, x: Array) -> Shape:
        """The axes of an array [*lead, *s] before the tensor's."""
        return tuple(x.shape[: x.ndim - self.rank])

    def column(self, x: Array) -> Array:
        """A number per tensor [*lead] so that it goes with [*lead, *s]."""
        return x.reshape((*x.shape, *(1,) * self.rank))

    def layered(self, x: Array) -> Array:
        """[*lead, *s] so that it goes with layers [*lead, K, *s]."""
        return x.reshape((*self.lead(x), 1, *x.shape[x.ndim - self.rank :]))

    def per_layer(self, x: Array) -> Array:
        """A number for each layer [K] so that it goes with layers [*lead, K, *s]."""
        return x.reshape((-1, *(1,) * self.rank))

    def layer(self, x: Array, k: int) -> Array:
        """Layer k of [*lead, K, *s]."""
        return x[(..., k, *(slice(None),) * self.rank)]

    def total(self, xp: Ops, x: Array) -> Sum:
        """The sum over all elements, [*lead, ...] of [*lead, ..., *s]."""
        axes = tuple(range(-self.rank, 0))
        return Sum(xp.sum(x, axis=axes), self.all_axes)

    def total_square(self, xp: Ops, x: Array) -> Sum:
        """The sum of squares of all elements, likewise."""
        axes = tuple(range(-self.rank, 0))
        return Sum(xp.sum_squares(x, axis=axes), self.all_axes)

    def total_product(self, xp: Ops, x: Array, y: Array) -> Sum:
        """The sum of products of all elements, [*lead] of [*lead, *s] twice."""
        return Sum(xp.dot(x, y, tuple(range(-self.rank, 0))), self.all_axes)

    def as_matrix(self, x: Array) -> Array:
        """[*lead, *s] as matrices [*lead, r, c]; see `matrix_sides`."""
        sizes = x.shape[x.ndim - self.rank :]
        at = 1 if self.out_first else self.rank - 1
        rows, columns = math.prod(sizes[:at]), math.prod(sizes[at:])
        return x.reshape((*self.lead(x), rows, columns))

    @property
    def out_first(self) -> bool:
        """Whether the output axis is stored first, as torch.nn does."""
        return self.rank > 1 and self.reading[-1] == 0

    @property
    def matrix_sides(self) -> tuple[int, int]:
        """(r, c) of `as_matrix`, of the whole tensor: (out, in) or (in, out)."""
        fan_in, out = self.sides
        return (out, fan_in) if self.out_first else (fan_in, out)

    @property
    def matrix_cut(self) -> int | None:
        """Which axis of `as_matrix` this process has a part of. Shards of joined axes
        change the order of rows or columns, and nothing else."""
        if self.cut is None:
            return None
        return int(self.cut >= (1 if self.out_first else self.rank - 1))
