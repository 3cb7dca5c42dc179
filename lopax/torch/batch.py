"""What goes between torch's optimizer and a rule: batches of tensors, rows, results."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax.rules.form import Place, Steps, Sum, complete

NOTHING: Mapping[str, Any] = types.MappingProxyType({})


class TensorBatch(NamedTuple):
    """B tensors of one shape `*s` and one role, all float32."""

    grads: Tensor  # [B, *s] finite, clipped; the step may write to it
    params: Tensor  # [B, *s]
    state: dict[str, Tensor]  # each [B, ...]; the step updates it in place
    place: Place  # of each of them
    told: Mapping[str, Tensor]  # each [B, ...]: what the rule told these tensors
    elements: Tensor | None = None  # [B, *s] the network's step, if a kernel made it


class Rows(NamedTuple):
    """What `Rule.advance` sees of the N tensors of a step, one row each."""

    count: int  # N  # pyright: ignore[reportIncompatibleMethodOverride]
    summaries: Tensor | None  # [N, F] what `summarise` returned, if the rule has it
    carried: dict[str, Tensor]  # each [N, ...]: the states named in `Rule.carried`


class Common(NamedTuple):
    """What all tensors of a step are told."""

    scale: Tensor  # [] the rule's learning-rate-like number
    updates: Tensor  # [] int32, made before this step
    told: Mapping[str, Tensor] = NOTHING  # small arrays
    bound: Tensor | None = None  # [] of gradients, if it moves

    def to(self, device: torch.device) -> Common:
        """The same on another device."""
        if self.scale.device == device:
            return self
        told = {k: v.to(device) for k, v in self.told.items()}
        bound = None if self.bound is None else self.bound.to(device)
        return Common(self.scale.to(device), self.updates.to(device), told, bound)


class Advance(NamedTuple):
    """What `Rule.advance` returns."""

    shared: dict[str, Tensor]  # the next shared state
    common: Common
    carried: Mapping[str, Tensor] = NOTHING  # the next rows of the carried states
    told: Mapping[str, Tensor] = NOTHING  # each [N, ...]: a row per tensor


__all__ = [
    "NOTHING",
    "Advance",
    "Common",
    "Rows",
    "Steps",
    "Sum",
    "TensorBatch",
    "complete",
]
