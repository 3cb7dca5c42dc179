"""The plain form of an element network: what `element_net` describes, in arithmetic.

The rule as its publication has it, in both frameworks, and the reference kernels are
held to. Every channel is an array that broadcasts to the tensor's shape; row and column
statistics keep size-1 axes, so that they cost their own size and not the tensor's. What
goes on between a tensor's accumulators and its step is done in parts of it, where a
framework wants that (`Ops.parts`): nothing of the size of all channels is ever built.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence

from lopax.rules import channels, layers
from lopax.rules.channels import COL, ELEMENT, GROUPS, ROW
from lopax.rules.element_net import SIZE_EPS, Decays, ElementNet, Numbers
from lopax.rules.element_view import Lines, Seen, View
from lopax.rules.form import Place, Steps, Sum
from lopax.rules.moments import Factored, Moments
from lopax.rules.ops import Array, Ops

_TINY = 1e-9


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
    del square
    state = Moments(momenta, second, Factored(row, col, full))
    return state, (yield from lines(xp, place, state))


def lines(xp: Ops, place: Place, state: Moments) -> Steps:
    """What the factored moments say of rows and columns: `Lines`."""
    if place.factored is None:
        full = state.factored.full
        factor = _safe_rsqrt(xp, full + _TINY)
        return Lines(full, full, factor, factor)
    d1, d0 = place.factored
    row = _expanded(place, state.factored.row, d0)
    col = _expanded(place, state.factored.col, d1)
    (total,) = yield [_along(xp, place, row, d1)]
    mean = total / max(place.shape[d1], 1)
    row_factor = _safe_rsqrt(xp, row / (mean + _TINY))
    return Lines(row, col, row_factor, _safe_rsqrt(xp, col))


def view_of(
    xp: Ops,
    place: Place,
    net: ElementNet,
    grad: Array,
    param: Array,
    state: Moments,
    lines: Lines,
) -> View:
    """A tensor [*lead, *s] as its network sees it. `state`: after `grad`."""
    grad, param, second = (place.layered(x) for x in (grad, param, state.second))
    seen = Seen(grad, param, state.momenta, second, lines)
    return View(xp, place, net.epsilons, seen)


def normalisers(
    xp: Ops, place: Place, net: ElementNet, view: View, more: Sequence[Sum] = ()
) -> Steps:
    """The factors that bring channels to unit root mean square, by the names of the
    groups that the tensor has, and the sums `more`, complete. Factors are [*lead] each,
    or with the tensor's axes behind if there is one per matrix.

    A channel with size-1 axes has the same mean as the full one, because broadcasting
    repeats every entry equally often.
    """
    names = net.seen(place.rank)
    over = place.matrix if net.per_matrix else place.all_axes
    each = len(over) < place.rank  # a factor per matrix
    behind = tuple(a - place.rank for a in over)
    d1, d0 = place.factored or (None, None)

    def squares(view: View, members: Sequence[str]) -> Array:
        """[*lead, channels] sums of squares, each with the tensor's axes behind."""
        found = [
            xp.sum_squares(GROUPS[name].of(view), behind, keepdims=each)
            for name in members
        ]
        return xp.concat(found, axis=-1 - place.rank * each)

    asked, counts, first = list(more), [], {}
    for kind, gone in ((ELEMENT, None), (ROW, d0), (COL, d1)):
        members = [n for n in names if GROUPS[n].over == kind]
        if not members:
            continue
        if kind == ELEMENT:
            parts = [squares(part, members) for part, _ in view.parts()]
            total = parts[0] if len(parts) == 1 else _together(xp, place, parts, over)
        else:
            total = squares(view, members)
        axes = tuple(a for a in over if a != gone)
        at = 0
        for name in members:
            first[name], at = (len(counts), at), at + GROUPS[name].width
        counts.append(max(math.prod(place.shape[a] for a in axes), 1))
        asked.append(Sum(total, axes))
    sums = yield asked
    means = [total / n for total, n in zip(sums[len(more) :], counts, strict=True)]
    scales = [layers.unit_scale(xp, mean, net.epsilons.channel) for mean in means]
    apart = [xp.unstack(x, axis=-1 - place.rank * each) for x in scales]
    found = {n: apart[i][at : at + GROUPS[n].width] for n, (i, at) in first.items()}
    return found, sums[: len(more)]


def _together(
    xp: Ops, place: Place, parts: Sequence[Array], over: Sequence[int]
) -> Array:
    """Sums over parts of a tensor as those over all of it."""
    if 0 in over:
        return functools.reduce(operator.add, parts)
    return xp.concat(parts, axis=-place.rank)


def step(
    xp: Ops,
    place: Place,
    net: ElementNet,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
    combine: Callable[[Sequence[Array], View], Array] | None = None,
    spare: bool = False,
) -> Steps:
    """What to add to the tensor [*lead, *s], and its next state.

    **Arguments:**

    - `combine`: makes the step of the network's outputs [*lead, *s] each and what it
        saw, of a part of the tensor; None: as `ElementNet` says.
    - `spare`: whether nobody needs `grad` afterwards, so that torch may write to it.
    """
    state, read = yield from update(xp, place, state, grad, numbers.decays)
    view = view_of(xp, place, net, grad, param, state, read)
    more = [] if net.bounds is None else [place.total_square(xp, param)]
    scales, sums = yield from normalisers(xp, place, net, view, more)
    size = numbers.scale
    if net.bounds is not None:
        rms = xp.sqrt(xp.minimum(sums[0] / place.size, 3e38) + SIZE_EPS)
        size = size * xp.clip(rms, *net.bounds.of(place.shape, place.matrix))

    def stepped(outputs: Sequence[Array], part: View) -> Array:
        delta = outputs[0]
        if net.exp_mult:
            delta = delta * xp.exp(net.exp_mult * outputs[1])
        delta = delta * place.column(-size)
        if net.hold_unreached:
            delta = part.hold_unreached(delta)
        return delta

    combine = combine or stepped
    names, network = net.seen(place.rank), dict(numbers.network)
    runs = _runs(net.rows(place.rank))
    if runs != [(0, net.num_channels)]:
        rows = [network["w0"][..., a:b, :] for a, b in runs]
        network["w0"] = xp.concat(rows, axis=-2)
    # What rows and columns say enters the first layer once, not with every part.
    of_elements = [n for n in names if GROUPS[n].over == ELEMENT]
    of_lines = [n for n in names if n not in of_elements]
    whole = list(view.channels(of_lines))
    factors, given = [], [x for n in names for x in scales[n]]
    if net.per_matrix and place.rank > len(place.matrix):
        given, factors = None, [x for n in of_elements for x in scales[n]]
        of_whole = (x for n in of_lines for x in scales[n])
        whole = list(map(operator.mul, whole, of_whole))
    numbered = dict(zip(channels.places(of_lines, names), whole, strict=True))
    mlp = xp.element_mlp(place, network, given, lines=numbered)

    def parts() -> Iterator[Array]:
        for part, more in view.parts((*mlp.begun, *factors)):
            begun, own = more[: len(mlp.begun)], more[len(mlp.begun) :]
            found = part.channels(of_elements)
            found = map(operator.mul, found, own) if factors else found
            yield combine(mlp(found, begun), part)

    return xp.joined(place, parts(), grad, spare), state


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
