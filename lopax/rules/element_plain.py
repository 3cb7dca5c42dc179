"""The plain form of an element network: what `element_net` describes, in arithmetic.

The rule as its publication has it, and the reference kernels are held to. Every channel
is an array that broadcasts to the tensor's shape; row and column statistics keep size-1
axes, so that they cost their own size and not the tensor's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from lopax.rules import layers, moments
from lopax.rules.channels import CLIP, COL, GROUPS, LINE_EPS, ROW
from lopax.rules.element_net import SIZE_EPS, Decays, ElementNet, Epsilons, Numbers
from lopax.rules.form import Place, Steps, Sum
from lopax.rules.moments import Factored, Moments
from lopax.rules.ops import Array, Ops

_TINY = 1e-9


class Lines(NamedTuple):
    """Row and column statistics, each to go with layers [*lead, 3, *s]."""

    row: Array  # second moment by row
    col: Array  # second moment by column (equal to `row` for vectors)
    factor: Array  # 1 / root of the factored second moment


class View:
    """One tensor after its accumulators were updated: the terms of its channels, as
    `channels.TERMS` names them, each [*lead, 1 or 3, *s] and computed if it is asked
    for."""

    def __init__(
        self,
        xp: Ops,
        place: Place,
        epsilons: Epsilons,
        grad: Array,
        param: Array,
        state: Moments,
        lines: Lines,
    ):
        self._xp, self._place, self._epsilons = xp, place, epsilons
        self.grad, self.param = place.layered(grad), place.layered(param)
        self.momenta, self.second = state.momenta, place.layered(state.second)
        self.row, self.col, self.factor = lines

    @functools.cached_property
    def clipped_grad(self) -> Array:
        return self._xp.clip(self.grad, -CLIP, CLIP)

    @functools.cached_property
    def rsqrt(self) -> Array:
        return self._xp.rsqrt(self.second + self._epsilons.second)

    @property
    def row_rsqrt(self) -> Array:
        return self._xp.rsqrt(self.row + LINE_EPS)

    @property
    def col_rsqrt(self) -> Array:
        return self._xp.rsqrt(self.col + LINE_EPS)

    @functools.cached_property
    def momenta_factor(self) -> Array:
        # A vector has no factors. The accumulators' own 1e-30 keeps it finite.
        if self._place.factored is None:
            return self._xp.rsqrt(self.row + self._epsilons.vector)
        return self.factor

    def groups(self, names: Sequence[str]) -> list[Array]:
        """The groups' channels, [*lead, 1 or 3, *s] each."""
        return [GROUPS[name].of(self) for name in names]

    def channels(self, names: Sequence[str], groups: Sequence[Array]) -> list[Array]:
        """All of them apart, in order."""
        widths = zip(groups, (GROUPS[name].width for name in names), strict=True)
        return [self._place.layer(values, k) for values, n in widths for k in range(n)]


def update(xp: Ops, place: Place, state: Moments, grad: Array, decays: Decays) -> Steps:
    """Moments after one more gradient [*lead, *s], and their `Lines`."""
    square = xp.square(grad)
    momenta = xp.ema(
        state.momenta, place.layered(grad), place.per_layer(decays.momenta)
    )
    second = xp.ema(state.second, square, decays.second[0])
    (row, col, full), rates = state.factored, place.per_layer(decays.factored)
    if place.factored is None:
        full = xp.ema(full, place.layered(square + 1e-30), rates)
    elif math.prod(place.shape):
        d1, d0 = place.factored
        over_row, over_col = yield [_along(xp, place, square, a) for a in (d0, d1)]
        row = _moved(xp, place, row, over_row, d0, rates)
        col = _moved(xp, place, col, over_col, d1, rates)
    state = Moments(momenta, second, Factored(row, col, full))
    return state, (yield from lines(xp, place, state))


def lines(xp: Ops, place: Place, state: Moments) -> Steps:
    """What the factored moments say of rows and columns: `Lines`."""
    if place.factored is None:
        full = state.factored.full
        return Lines(full, full, _safe_rsqrt(xp, full + _TINY))
    d1, d0 = place.factored
    row = _expanded(place, state.factored.row, d0)
    col = _expanded(place, state.factored.col, d1)
    (total,) = yield [_along(xp, place, row, d1)]
    mean = total / max(place.shape[d1], 1)
    row_scale = _safe_rsqrt(xp, row / (mean + _TINY))
    return Lines(row, col, row_scale * _safe_rsqrt(xp, col))


def outputs(
    xp: Ops,
    place: Place,
    net: ElementNet,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
) -> Steps:
    """The network's outputs for every element, what it saw (`View`), and the next
    state. `grad`, `param`: [*lead, *s]."""
    state, read = yield from update(xp, place, state, grad, numbers.decays)
    view = View(xp, place, net.epsilons, grad, param, state, read)
    names, rows = net.seen(place.rank), net.rows(place.rank)
    groups = view.groups(names)
    scales = yield from normalisers(xp, place, net, names, groups)
    seen = view.channels(names, groups)
    network = dict(numbers.network)
    if len(rows) < net.num_channels:
        network["w0"] = xp.concat([network["w0"][a:b] for a, b in _runs(rows)])
    found = xp.element_mlp(place, network, seen, scales, xp.zeros((0,)))
    return found, view, state


def normalisers(
    xp: Ops, place: Place, net: ElementNet, names: Sequence[str], seen: Sequence[Array]
) -> Steps:
    """The factors that bring channels to unit root mean square, [*lead] each, or
    with the tensor's axes behind if there is one per matrix. `seen`: what
    `View.groups` says of the names; channels of a group are summed together, which is
    one loop to compile instead of three.

    A channel with size-1 axes has the same mean as the full one, because broadcasting
    repeats every entry equally often.
    """
    over = place.matrix if net.per_matrix else place.all_axes
    per_part = len(over) < place.rank
    asked, counts = [], []
    for name, values in zip(names, seen, strict=True):
        d1, d0 = place.factored or (None, None)
        gone = {ROW: d0, COL: d1}.get(GROUPS[name].over)
        axes = tuple(a for a in over if a != gone)
        behind = tuple(a - place.rank for a in over)
        squares = xp.sum(xp.square(values), axis=behind, keepdims=per_part)
        asked.append(Sum(squares, axes))
        counts.append(max(math.prod(place.shape[a] for a in axes), 1))
    sums = yield asked
    scales, eps = [], net.epsilons.channel
    for name, total, count in zip(names, sums, counts, strict=True):
        scale = layers.unit_scale(xp, total / count, eps)
        of_layer = place.layer if per_part else _number
        scales += [of_layer(scale, k) for k in range(GROUPS[name].width)]
    return scales


def _number(x: Array, k: int) -> Array:
    return x[..., k]


def step(
    xp: Ops,
    place: Place,
    net: ElementNet,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
) -> Steps:
    """What to add to the tensor [*lead, *s], and its next state."""
    found, _, state = yield from outputs(xp, place, net, numbers, grad, state, param)
    size = numbers.scale
    if net.bounds is not None:
        (square,) = yield [place.total_square(xp, param)]
        rms = xp.sqrt(xp.minimum(square / place.size, 3e38) + SIZE_EPS)
        size = size * xp.clip(rms, *net.bounds.of(place.shape, place.matrix))
    delta = -xp.broadcast_to(found[0], grad.shape)
    if net.exp_mult:
        delta = delta * xp.exp(net.exp_mult * found[1])
    delta = delta * place.column(size)
    if net.hold_unreached:
        delta = moments.hold_unreached(xp, place, delta, state)
    return delta, state


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as ranges without gaps, [first, last + 1)."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n + 1 for n in numbers if n + 1 not in numbers]
    return list(zip(starts, ends, strict=True))


def _along(xp: Ops, place: Place, x: Array, axis: int) -> Sum:
    """The sum over one of the tensor's axes, which keeps size one."""
    return Sum(xp.sum(x, axis=axis - place.rank, keepdims=True), (axis,))


def _expanded(place: Place, x: Array, axis: int) -> Array:
    """[*lead, 3, *s without the axis] with size one there."""
    at = x.ndim - (place.rank - 1) + axis
    return x.reshape((*x.shape[:at], 1, *x.shape[at:]))


def _moved(
    xp: Ops, place: Place, old: Array, total: Array, axis: int, rates: Array
) -> Array:
    """A factored moment [*lead, 3, *s without the axis] after one more gradient, of
    whose squares the sum over the axis is [*lead, *s], there of size one."""
    mean = place.layered(total / place.shape[axis] + 1e-30)
    return xp.ema(_expanded(place, old, axis), mean, rates).reshape(old.shape)


def _safe_rsqrt(xp: Ops, x: Array) -> Array:
    return xp.rsqrt(xp.maximum(x, _TINY))
