"""The accumulators most per-element rules keep, for a batch of tensors.

Three momenta, one second moment and three factored second moments of a gradient, none
of them bias-corrected: the counterpart of `lopax.blocks.moments` and
`lopax.blocks.accumulators`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax.rules.element_net import Decays
from lopax.torch.geometry import Accumulator
from lopax.torch.rule import Sum, TensorBatch, constant

THREE = (0.9, 0.99, 0.999)
"""The decays of momenta and factored moments most publications use, or start from."""


class Factors(NamedTuple):
    """Row and column statistics [B, 3, ...] that broadcast to [B, 3, *s]."""

    row: Tensor
    col: Tensor
    row_scale: Tensor
    col_scale: Tensor


def fixed(momenta: Any, second: float, factored: Any) -> dict[str, Tensor]:
    """Decays that are settings, as a rule keeps them beside theta: three numbers, one,
    three."""
    return _constants(Decays(*(constant(d) for d in (momenta, (second,), factored))))


def learned(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    """From meta-learned offsets: decays 1 - (1 - d) exp(10 t), kept in [0, 1].

    The order of operations is the published one: for decays near one only four digits
    of 1 - d survive in float32, and another order would be another decay.
    """

    def decay(initial: tuple[float, ...], offsets: Tensor) -> Tensor:
        start = torch.log(1.0 - constant(initial)) / 10.0
        return (1.0 - torch.exp((start + offsets) * 10.0)).clamp(0.0, 1.0)

    return _constants(
        Decays(
            momenta=decay(THREE, theta["decays/momenta"]),
            second=decay((0.999,), theta["decays/second"]),
            factored=decay(THREE, theta["decays/factored"]),
        )
    )


def _constants(decays: Decays) -> dict[str, Tensor]:
    return {f"{name}_decays": d for name, d in decays._asdict().items()}


def decays(theta: Mapping[str, Tensor]) -> Decays:
    """What `fixed` or `learned` made, of a rule's constants."""
    return Decays(*(theta[f"{name}_decays"] for name in Decays._fields))


def accumulators(rank: int, axes: Any) -> dict[str, Accumulator]:
    """Of one tensor; `axes`: (second largest, largest) axis, None for vectors."""
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


def update(
    batch: TensorBatch, decays: Decays, alive: Tensor
) -> Generator[list[Sum], list[Tensor], Factors]:
    """Moves the accumulators by the gradients, and reads off the factored ones.

    With `alive` 0 nothing changes. The moments' 1e-30 is added after the mean; in
    float32 that is the same.
    """
    state, grads = batch.state, batch.grads
    momenta, second, factored = ((1.0 - d) * alive for d in decays)
    square = grads * grads
    _blend(state["momenta"], grads, momenta)
    state["second"].lerp_(square, second.squeeze(0))
    if batch.axes is None:
        full = state["full"]
        _blend(full, square + 1e-30, factored)
        one = torch.ones_like(full[:, :, :1])
        return Factors(full, full, safe_rsqrt(full + 1e-9), one)
    d1, d0 = batch.axes
    row, col = state["row"], state["col"]
    row_sum, col_sum = yield [
        Sum(square.sum(1 + d0), (d0,)),
        Sum(square.sum(1 + d1), (d1,)),
    ]
    del square
    _blend(row, row_sum / batch.shape[d0] + 1e-30, factored)
    _blend(col, col_sum / batch.shape[d1] + 1e-30, factored)
    axis = 2 + (d1 - 1 if d1 > d0 else d1)
    (total,) = yield [Sum(row.sum(axis, keepdim=True), (d1,))]
    mean = total / batch.shape[d1]
    return Factors(
        row=row.unsqueeze(2 + d0),
        col=col.unsqueeze(2 + d1),
        row_scale=safe_rsqrt(row / (mean + 1e-9)).unsqueeze(2 + d0),
        col_scale=safe_rsqrt(col).unsqueeze(2 + d1),
    )


def unreached(state: Mapping[str, Tensor]) -> Tensor:
    """[B, *s] bool: the elements that never saw a gradient other than zero, whose
    accumulators are zero. They are to stay where they are."""
    return state["second"].eq(0.0).logical_and_(state["momenta"].eq(0.0).all(1))


def safe_rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(max(x, 1e-9))."""
    return torch.rsqrt(x.clamp_min(1e-9))


def _blend(old: Tensor, new: Tensor, weights: Tensor) -> None:
    """old [B, 3, ...] moves towards new [B, ...] by weights [3], in place."""
    old.lerp_(new.unsqueeze(1), weights.reshape(-1, *(1,) * (new.ndim - 1)))
