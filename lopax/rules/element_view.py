"""What the network of an element sees of a tensor: the terms of its channels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lopax.rules import layers
from lopax.rules.channels import CLIP, GROUPS, LINE_EPS
from lopax.rules.element_net import Epsilons
from lopax.rules.form import Place
from lopax.rules.ops import Array, Ops


class Lines(NamedTuple):
    """Row and column statistics, each to go with layers [*lead, 3, *s]."""

    row: Array  # second moment by row
    col: Array  # second moment by column (equal to `row` for vectors)
    row_factor: Array  # these two multiplied are 1 / root of the factored second
    col_factor: Array  # moment; of a vector the first one is


class Seen(NamedTuple):
    """What the terms are made of, [*lead, 1 or 3, *s] each, some with size-1 axes."""

    grad: Array
    param: Array
    momenta: Array
    second: Array
    lines: Lines


class View:
    """A tensor, or a part of one, after its accumulators were updated: the terms of its
    channels, as `channels.TERMS` names them, each [*lead, 1 or 3, *s] and computed if
    it is asked for."""

    def __init__(self, xp: Ops, place: Place, epsilons: Epsilons, seen: Seen):
        self._xp, self._place, self._epsilons, self._seen = xp, place, epsilons, seen
        self.grad, self.param, self.momenta, self.second, lines = seen
        self.row, self.col, self._row_factor, self._col_factor = lines

    @functools.cached_property
    def clipped_grad(self) -> Array:
        return self._xp.clip(self.grad, -CLIP, CLIP)

    @functools.cached_property
    def rsqrt(self) -> Array:
        return self._xp.rsqrt(self.second + self._epsilons.second)

    @functools.cached_property
    def row_rsqrt(self) -> Array:
        return self._xp.rsqrt(self.row + LINE_EPS)

    @functools.cached_property
    def col_rsqrt(self) -> Array:
        return self._xp.rsqrt(self.col + LINE_EPS)

    @functools.cached_property
    def factor(self) -> Array:
        if self._place.factored is None:
            return self._row_factor
        return self._row_factor * self._col_factor

    @functools.cached_property
    def momenta_factor(self) -> Array:
        # A vector has no factors. The accumulators' own 1e-30 keeps it finite, and the
        # bound does in first steps that are skipped, where it is not there yet.
        if self._place.factored is None:
            full = self._xp.maximum(self.row + self._epsilons.vector, 1e-36)
            return self._xp.rsqrt(full)
        return self.factor

    def channels(self, names: Sequence[str]) -> Iterator[Array]:
        """The channels [*lead, *s] of groups, apart and in order."""
        for name in names:
            yield from self._xp.unstack(GROUPS[name].of(self), -1 - self._place.rank)

    def hold_unreached(self, x: Array) -> Array:
        """x [*lead, *s], and 0 for elements that never saw a gradient but zero."""
        averages = self.momenta, self.second
        return layers.hold_unreached(self._xp, self._place, x, *averages)

    def parts(
        self, more: Sequence[Array] = ()
    ) -> Iterator[tuple[View, Sequence[Array]]]:
        """Views of parts of the tensor, together of all of it, each with what goes with
        it of other arrays [*lead, ..., *s]."""
        *own, lines = self._seen
        arrays = (*own, *lines)
        for found in self._xp.parts(self._place, (*arrays, *more)):
            grad, param, momenta, second = found[: len(own)]
            lines = Lines(*found[len(own) : len(arrays)])
            seen = Seen(grad, param, momenta, second, lines)
            view = View(self._xp, self._place, self._epsilons, seen)
            yield self if grad is self.grad else view, found[len(arrays) :]
