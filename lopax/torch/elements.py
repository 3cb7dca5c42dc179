"""The plain form of an element network in torch, for a batch of tensors.

What `lopax.rules.element_net` describes. Channels that depend on a row or a column
alone enter the first layer as vectors; the others are computed twice, once for their
mean squares and once for the step, and summed into the hidden units one at a time.
Nothing of shape [..., channels] is built.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lopax.rules import channels
from lopax.rules.channels import CLIP, COL, ELEMENT, GROUPS, LINE_EPS, ROW
from lopax.rules.element_net import SIZE_EPS, ElementNet, Numbers
from lopax.torch import moments
from lopax.torch.batch import Sum, TensorBatch
from lopax.torch.moments import Factors

# Elements treated at a time: intermediate results should stay in a CPU's cache; a GPU
# wants few launches, and few megabytes beside the state.
CPU_CHUNK, GPU_CHUNK = 1 << 15, 1 << 22


class View(NamedTuple):
    """A range of a batch of tensors, as [B, k, *s] with k one or three: the terms of
    channels with a value per element."""

    grad: Tensor
    clipped_grad: Tensor
    param: Tensor
    momenta: Tensor
    second: Tensor
    rsqrt: Tensor
    factor: Tensor
    momenta_factor: Tensor


def step(
    batch: TensorBatch, net: ElementNet, numbers: Numbers, alive: Tensor
) -> Generator[list[Sum], list[Tensor], Tensor]:
    """The step [B, *s], in place of grads; updates the accumulators."""
    factors = yield from moments.update(batch, numbers.decays, alive)
    names = net.seen(len(batch.shape))
    lines = {o: [n for n in names if GROUPS[n].over == o] for o in (ELEMENT, ROW, COL)}
    blocks, row_names, col_names = lines[ELEMENT], lines[ROW], lines[COL]
    every = tuple(range(len(batch.shape)))
    over = batch.matrix if net.per_matrix else every
    d1, d0 = batch.axes or (None, None)
    row, col = _with_rsqrt(factors.row), _with_rsqrt(factors.col)
    # A row moment has size one along d0, which is complete in every shard.
    row_over = tuple(a for a in over if a != d0)
    col_over = tuple(a for a in over if a != d1)
    cuts = _cuts(batch)
    asked = [Sum(_sums_over_cuts(batch, factors, net, blocks, cuts, over), over)]
    if row_names:
        asked.append(Sum(_square_sums([row], over), row_over))
        asked.append(Sum(_square_sums([col], over), col_over))
    sums = yield asked
    mean = sums[0] / _count(batch, over)
    w0, eps = numbers.network["w0"], net.epsilons.channel
    weights = _rows(net, w0, blocks)
    stacked = mean[0, 0].numel() > 1  # normalisers that differ within a tensor
    normal = None
    if stacked:
        normal = _spread(torch.rsqrt(eps + mean), batch, over)
        weights = _at(weights, mean.unsqueeze(2))
    else:
        # The normalisers go into the first layer's weights, [B, channels, H, ...].
        weights = _folded(weights, mean, eps)
    start = _at(numbers.network["b0"], batch.grads.unsqueeze(1))
    if row_names:
        row_mean = sums[1] / _count(batch, row_over)
        col_mean = sums[2] / _count(batch, col_over)
        row_weights = _folded(_rows(net, w0, row_names), row_mean, eps)
        col_weights = _folded(_rows(net, w0, col_names), col_mean, eps)
        from_rows = _mix(row, row_weights) + start
        from_cols = _mix(col, col_weights)
    else:
        from_rows = from_cols = None
    factor = -numbers.scale
    if net.bounds is not None:
        at = channels.places(["param"], blocks)[0]
        size = torch.sqrt(mean[:, at].flatten() + SIZE_EPS)
        factor = factor * size.clamp(*net.bounds.of(batch.shape, batch.matrix))
    for cut in cuts:
        if from_rows is None or from_cols is None:
            part = cut(batch.grads, 1)
            shape = (len(part), start.shape[1], *part.shape[1:])
            hidden = start.expand(shape).clone()
        else:
            hidden = cut(from_rows, 2) + cut(from_cols, 2)
        values = _channels(batch, factors, net, blocks, cut)
        if normal is not None:
            values = _normalised(values, cut(normal, 2))
        out = _mlp(values, weights, hidden, numbers.network)
        update = out[:, 0]
        if net.exp_mult:
            update = update * torch.exp(net.exp_mult * out[:, 1])
        # The gradient's buffer is the batch's own; the update takes its place.
        torch.mul(update, _at(factor, update), out=cut(batch.grads, 1))
    if net.hold_unreached:
        batch.grads.masked_fill_(
            moments.unreached(batch.state["momenta"], batch.state["second"]), 0.0
        )
    return batch.grads


class _Cut(NamedTuple):
    """A range of the tensor's first axis, or the whole tensor."""

    start: int
    length: int
    whole: bool

    def __call__(self, x: Tensor, axis: int) -> Tensor:
        """`x` within the range; `axis` is where `x` has the tensor's first axis."""
        if self.whole or x.shape[axis] == 1:
            return x
        return x.narrow(axis, self.start, self.length)


def _cuts(batch: TensorBatch) -> list[_Cut]:
    grads = batch.grads
    first = grads.shape[1]
    chunk = CPU_CHUNK if grads.device.type == "cpu" else GPU_CHUNK
    length = max(1, chunk // max(1, grads.numel() // max(1, first)))
    if length >= first or torch.compiler.is_compiling():
        return [_Cut(0, first, True)]
    return [_Cut(i, min(length, first - i), False) for i in range(0, first, length)]


def _channels(
    batch: TensorBatch,
    factors: Factors,
    net: ElementNet,
    blocks: Iterable[str],
    cut: _Cut,
) -> Iterator[Tensor]:
    """The channels with a value per element, in order, as blocks [B, k, *s]."""
    second = cut(batch.state["second"], 1).unsqueeze(1)
    factor = cut(factors.row_scale, 2) * cut(factors.col_scale, 2)
    if batch.axes is None and "factored_momenta" in blocks:
        # Published without an epsilon where `epsilons.vector` is 0. A moment is 1e-33
        # or more once it was updated; the bound is for skipped first steps, where it
        # is zero.
        full = cut(factors.row, 2) + net.epsilons.vector
        momenta_factor = torch.rsqrt(full.clamp_min(1e-36))
    else:
        momenta_factor = factor
    grad = cut(batch.grads, 1).unsqueeze(1)
    view = View(
        grad=grad,
        clipped_grad=grad.clamp(-CLIP, CLIP) if "clipped_grad" in blocks else grad,
        param=cut(batch.params, 1).unsqueeze(1),
        momenta=cut(batch.state["momenta"], 2),
        second=second,
        rsqrt=torch.rsqrt(second + net.epsilons.second),
        factor=factor,
        momenta_factor=momenta_factor,
    )
    for name in blocks:
        yield GROUPS[name].of(view)


def _sums_over_cuts(
    batch: TensorBatch,
    factors: Factors,
    net: ElementNet,
    blocks: Iterable[str],
    cuts: list[_Cut],
    over: tuple[int, ...],
) -> Tensor:
    """[B, channels, ...] sums of squares over some axes, which keep size one."""
    parts = [
        _square_sums(_channels(batch, factors, net, blocks, cut), over) for cut in cuts
    ]
    if 0 in over:
        return functools.reduce(torch.add, parts)
    return torch.cat(parts, dim=2)


def _square_sums(blocks: Iterable[Tensor], over: tuple[int, ...]) -> Tensor:
    norms = []
    for x in blocks:
        if len(over) == x.ndim - 2:
            flat = torch.linalg.vector_norm(x.flatten(2), dim=2)
            norms.append(_at(flat, x))
        else:
            squares = x.square()
            for axis in sorted(over):  # the first leaves long contiguous runs
                squares = squares.sum(2 + axis, keepdim=True)
            norms.append(torch.sqrt(squares))
    return torch.cat(norms, 1).square()


def _count(batch: TensorBatch, over: tuple[int, ...]) -> int:
    return math.prod(batch.shape[a] for a in over)


def _rows(net: ElementNet, w0: Tensor, names: Iterable[str]) -> Tensor:
    """The rows of first-layer weights [..., C, H] that belong to some groups."""
    parts = []
    for name in names:
        start = channels.places([name], net.channels)[0]
        parts.append(w0[..., start : start + GROUPS[name].width, :])
    return torch.cat(parts, dim=-2)


def _with_rsqrt(x: Tensor) -> Tensor:
    """[B, 3, ...] -> [B, 6, ...]: row (or column) moments and their inverse roots."""
    return torch.cat([x, torch.rsqrt(x + LINE_EPS)], 1)


def _folded(weights: Tensor, mean_square: Tensor, eps: float) -> Tensor:
    """[B or 1, C, H] times the normalisers [B, C, *r] of C channels: [B, C, H, *r]."""
    normal = torch.rsqrt(eps + mean_square).unsqueeze(2)
    return _at(weights, normal) * normal


def _spread(normal: Tensor, batch: TensorBatch, over: tuple[int, ...]) -> Tensor:
    """Normalisers [B, C, *r], repeated along the second axis where they vary along the
    last: what multiplies long runs is much faster."""
    if len(batch.shape) - 1 in over:
        return normal
    sizes = list(normal.shape)
    sizes[3] = batch.grads.shape[2]
    return normal.expand(sizes).contiguous()


def _normalised(channels: Iterator[Tensor], normal: Tensor) -> Iterator[Tensor]:
    c = 0
    for block in channels:
        yield block * normal[:, c : c + block.shape[1]]
        c += block.shape[1]


def _mix(channels: Tensor, weights: Tensor) -> Tensor:
    """[B, C, ...] and [B, C, H, *r] -> [B, H, ...], for small channels."""
    return (channels.unsqueeze(2) * weights).sum(1)


def _mlp(
    channels: Iterator[Tensor],
    weights: Tensor,
    hidden: Tensor,
    arrays: Mapping[str, Tensor],
) -> Tensor:
    """Outputs [B, O, *s]; `hidden` [B, H, *s] is consumed."""
    c = 0
    for block in channels:
        for i in range(block.shape[1]):
            hidden.addcmul_(block[:, i : i + 1], weights[:, c])
            c += 1
    hidden = _dense(hidden.relu_(), arrays["w1"], arrays["b1"])
    return _dense(hidden.relu_(), arrays["w2"], arrays["b2"])


def _dense(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """[B, I, ...] through weights [B or 1, I, O] and bias [B or 1, O]: [B, O, ...]."""
    out = torch.addcmul(_at(b, x), x[:, :1], _at(w[:, 0], x))
    for i in range(1, w.shape[1]):
        out.addcmul_(x[:, i : i + 1], _at(w[:, i], x))
    return out


def _at(small: Tensor, like: Tensor) -> Tensor:
    """`small` with size-1 axes appended up to the rank of `like`."""
    return small.reshape(*small.shape, *(1,) * (like.ndim - small.ndim))
