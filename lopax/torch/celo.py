"""Celo in torch: a learned per-element rule times a learned schedule.

Moudgil, Knyazev, Lajoie and Belilovsky (2025, arXiv 2501.12670). The counterpart of
`lopax.architectures.celo`, with the same weights and the same numbers.

Of the 30 channels the MLP sees, 12 depend on a row or a column alone and enter its
first layer as vectors; the other 18 are computed twice, once for their mean squares
and once for the step, and summed into the four hidden units one at a time. Nothing of
shape [..., 30] is built.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax.torch import scheduler
from lopax.torch.geometry import Accumulator
from lopax.torch.rule import Rule, Steps, Sum, TensorBatch
from lopax.torch.theta import published_scheduler

CHANNELS = 30
PARAM = 2  # the channel that holds the parameter itself

# Elements treated at a time: intermediate results should stay in a CPU's cache; a GPU
# wants few launches, and few megabytes beside the state.
CPU_CHUNK, GPU_CHUNK = 1 << 15, 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloConfig:
    """Settings of `Celo`, as in `lopax.architectures.celo.CeloConfig`."""

    phase: int = 2
    hidden: int = 4
    lstm: int = 64
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    second_decay: float = 0.999
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    step_mult: float = 1e-3
    exp_mult: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self, "phase", low=1, high=2)
        check_range(self, "hidden", low=2)
        check_range(self, "lstm", low=1)
        check_range(self, "second_decay", low=0.0, below=1.0)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        for name in ("momentum_decays", "factored_decays"):
            decays = getattr(self, name)
            if len(decays) != 3 or not all(0.0 <= d < 1.0 for d in decays):
                raise ConfigError(
                    f"CeloConfig.{name} = {decays!r}: must be three numbers in [0, 1)"
                )


class Factors(NamedTuple):
    """Row and column statistics [B, 3, ...] that broadcast to [B, 3, *s]."""

    row: Tensor
    col: Tensor
    row_scale: Tensor
    col_scale: Tensor
    vector_scale: Tensor | None = None  # vectors: of the momenta, instead of the two


class CeloRule(Rule):
    """See the module docstring."""

    name: ClassVar[str] = "celo"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    config_class: ClassVar[type] = CeloConfig

    @classmethod
    def theta_shapes(cls, config: CeloConfig) -> dict[str, tuple[int, ...]]:
        h = config.hidden
        return {
            "rule/w0": (CHANNELS, h),
            "rule/b0": (h,),
            "rule/w1": (h, h),
            "rule/b1": (h,),
            "rule/w2": (h, 2),
            "rule/b2": (2,),
            **scheduler.shapes(config.lstm),
        }

    @classmethod
    def constants(cls, config: CeloConfig) -> dict[str, Tensor]:
        return {
            "momentum_weights": 1.0 - torch.tensor(config.momentum_decays),
            "factored_weights": 1.0 - torch.tensor(config.factored_decays),
            **scheduler.constants(),
        }

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        bank = {
            k.removeprefix("ff_mod_stack/~/"): v
            for k, v in arrays.items()
            if k.startswith("ff_mod_stack/~/")
        }
        if "w1" not in bank or bank["w1"].shape[0] != 1:
            return arrays
        groups = sum(k.startswith("w0__") for k in bank)
        return {
            "rule/w0": np.concatenate([bank[f"w0__{i}"][0] for i in range(groups)]),
            "rule/b0": bank["b0"][0],
            "rule/w1": bank["w1"][0],
            "rule/b1": bank["b1"][0],
            "rule/w2": bank["w2"][0, :, :2],
            "rule/b2": bank["b2"][0, :2],
            **published_scheduler(arrays),
        }

    def init_shared(self, num_steps: int) -> dict[str, Tensor]:
        return scheduler.init(self.theta, num_steps)

    def accumulators(self, rank: int, axes: Any) -> dict[str, Accumulator]:
        every = tuple(range(rank))
        elements = {"momenta": Accumulator(3, every), "second": Accumulator(0, every)}
        if axes is None:
            return {**elements, "full": Accumulator(3, every)}
        d1, d0 = axes
        return {
            **elements,
            "row": Accumulator(3, tuple(a for a in every if a != d0)),
            "col": Accumulator(3, tuple(a for a in every if a != d1)),
        }

    def advance(
        self, shared: dict[str, Tensor], loss: Tensor, fraction: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        c = self.config
        if c.phase == 1:
            return shared, torch.full((), c.step_mult, device=loss.device)
        shared, multiplier = scheduler.advance(self.theta, shared, loss, fraction)
        return shared, c.step_mult * multiplier

    def step(self, batch: TensorBatch, scale: Tensor, alive: Tensor) -> Steps:
        c, state, grads = self.config, batch.state, batch.grads
        square = grads * grads
        _blend(state["momenta"], grads, self.theta["momentum_weights"] * alive)
        state["second"].lerp_(square, (1.0 - c.second_decay) * alive)
        factors = yield from self._factors(batch, square, alive)
        del square
        row, col = _with_rsqrt(factors.row), _with_rsqrt(factors.col)
        cuts = _cuts(batch)
        sums = sum(_square_sums(_channels(batch, factors, cut)) for cut in cuts)
        every = tuple(range(len(batch.shape)))
        d1, d0 = batch.axes or (None, None)
        sums, row_sums, col_sums = yield [
            Sum(torch.as_tensor(sums), every),
            Sum(_square_sums([row]), tuple(a for a in every if a != d0)),
            Sum(_square_sums([col]), tuple(a for a in every if a != d1)),
        ]
        count = math.prod(batch.shape)
        mean = sums / count
        row_mean = row_sums * (1 if d0 is None else batch.shape[d0]) / count
        col_mean = col_sums * (1 if d1 is None else batch.shape[d1]) / count
        # The normalisers go into the first layer's weights, [B, channels, H].
        w0 = self.theta["rule/w0"]
        weights = _folded(torch.cat([w0[:15], w0[27:]]), mean)
        row_weights = _folded(torch.cat([w0[15:18], w0[21:24]]), row_mean)
        col_weights = _folded(torch.cat([w0[18:21], w0[24:27]]), col_mean)
        row_hidden, col_hidden = _mix(row, row_weights), _mix(col, col_weights)
        row_hidden += _at(self.theta["rule/b0"].unsqueeze(0), row_hidden)
        size = torch.sqrt(mean[:, PARAM] + 1e-9) * scale * alive
        for cut in cuts:
            hidden = cut(row_hidden, 2) + cut(col_hidden, 2)
            update = self._mlp(_channels(batch, factors, cut), weights, hidden)
            # The gradient's buffer is the batch's own; the update takes its place.
            torch.mul(update, _at(size, update), out=cut(grads, 1))
        return grads

    def _factors(
        self, batch: TensorBatch, square: Tensor, alive: Tensor
    ) -> Generator[list[Sum], list[Tensor], Factors]:
        """Updates the factored moments and reads them off.

        The moments' 1e-30 is added after the mean; in float32 that is the same.
        """
        weights = self.theta["factored_weights"] * alive
        if batch.axes is None:
            full = batch.state["full"]
            _blend(full, square + 1e-30, weights)
            ones = torch.ones_like(full[:, :, :1])
            # The published rule has no epsilon here. A moment is 1e-33 or more once
            # it was updated; the bound is for skipped first steps, where it is zero.
            exact = torch.rsqrt(full.clamp_min(1e-36))
            return Factors(full, full, _safe_rsqrt(full + 1e-9), ones, exact)
        d1, d0 = batch.axes
        row, col = batch.state["row"], batch.state["col"]
        row_sum, col_sum = yield [
            Sum(square.sum(1 + d0), (d0,)),
            Sum(square.sum(1 + d1), (d1,)),
        ]
        _blend(row, row_sum / batch.shape[d0] + 1e-30, weights)
        _blend(col, col_sum / batch.shape[d1] + 1e-30, weights)
        axis = 2 + (d1 - 1 if d1 > d0 else d1)
        (total,) = yield [Sum(row.sum(axis, keepdim=True), (d1,))]
        mean = total / batch.shape[d1]
        return Factors(
            row=row.unsqueeze(2 + d0),
            col=col.unsqueeze(2 + d1),
            row_scale=_safe_rsqrt(row / (mean + 1e-9)).unsqueeze(2 + d0),
            col_scale=_safe_rsqrt(col).unsqueeze(2 + d1),
        )

    def _mlp(
        self, channels: Iterator[Tensor], weights: Tensor, hidden: Tensor
    ) -> Tensor:
        """-direction * exp(magnitude) [B, *s]; `hidden` [B, H, *s] is consumed."""
        c = 0
        for block in channels:
            for i in range(block.shape[1]):
                w = _at(weights[:, c], hidden)
                hidden.addcmul_(block[:, i : i + 1], w)
                c += 1
        hidden = _dense(hidden.relu_(), self.theta["rule/w1"], self.theta["rule/b1"])
        out = _dense(hidden.relu_(), self.theta["rule/w2"], self.theta["rule/b2"])
        return out[:, 0].neg() * torch.exp(self.config.exp_mult * out[:, 1])


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


def _channels(batch: TensorBatch, factors: Factors, cut: _Cut) -> Iterator[Tensor]:
    """The 18 channels with a value per element, in order, as blocks [B, k, *s]."""
    g = cut(batch.grads, 1).unsqueeze(1)
    m, v = cut(batch.state["momenta"], 2), cut(batch.state["second"], 1).unsqueeze(1)
    yield g
    yield g.clamp(-0.1, 0.1)
    yield cut(batch.params, 1).unsqueeze(1)
    yield m
    yield v
    rsqrt = torch.rsqrt(v + 1e-6)
    yield m * rsqrt
    yield rsqrt
    factor = cut(factors.row_scale, 2) * cut(factors.col_scale, 2)
    yield g * factor
    yield g * rsqrt
    exact = factors.vector_scale
    yield m * (factor if exact is None else cut(exact, 2))


def _square_sums(blocks: Any) -> Tensor:
    """[B, channels] sums of squares over each channel."""
    norms = [torch.linalg.vector_norm(x.flatten(2), dim=2) for x in blocks]
    return torch.cat(norms, 1).square()


def _with_rsqrt(x: Tensor) -> Tensor:
    """[B, 3, ...] -> [B, 6, ...]: row (or column) moments and their inverse roots."""
    return torch.cat([x, torch.rsqrt(x + 1e-8)], 1)


def _folded(weights: Tensor, mean_square: Tensor) -> Tensor:
    """[C, H] weights times the normalisers of C channels: [B, C, H]."""
    return weights * torch.rsqrt(1e-5 + mean_square).unsqueeze(2)


def _mix(channels: Tensor, weights: Tensor) -> Tensor:
    """[B, C, ...] and [B, C, H] -> [B, H, ...], for small channels."""
    spread = weights.reshape(*weights.shape, *(1,) * (channels.ndim - 2))
    return (channels.unsqueeze(2) * spread).sum(1)


def _dense(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x [B, I, ...] through weights [I, O] and bias [O]: [B, O, ...]."""
    out = torch.addcmul(_at(b.unsqueeze(0), x), x[:, :1], _at(w[:1], x))
    for i in range(1, w.shape[0]):
        out.addcmul_(x[:, i : i + 1], _at(w[i : i + 1], x))
    return out


def _blend(old: Tensor, new: Tensor, weights: Tensor) -> None:
    """old [B, 3, ...] moves towards new [B, ...] by weights [3], in place."""
    old.lerp_(new.unsqueeze(1), weights.reshape(-1, *(1,) * (new.ndim - 1)))


def _at(small: Tensor, like: Tensor) -> Tensor:
    """`small` with size-1 axes appended up to the rank of `like`."""
    return small.reshape(*small.shape, *(1,) * (like.ndim - small.ndim))


def _safe_rsqrt(x: Tensor) -> Tensor:
    return torch.rsqrt(x.clamp_min(1e-9))
