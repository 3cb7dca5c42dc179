"""Saved momenta in the format that an optimizer was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lopax._core.narrow import COPIES, FIELDS
from lopax.torch import sharding
from lopax.torch.geometry import Accumulator
from lopax.torch.narrow import DTYPES, UNITS, Stored, widened, write
from lopax.torch.state import Plan


def converted(saved: Mapping[str, Any], param: Tensor, plan: Plan) -> dict[str, Any]:
    """A parameter's saved state, with momenta that are kept in another format than
    `plan` says brought to that; what no format has is left as it is."""
    found = dict(saved)
    for name in FIELDS:
        spec, have = plan.specs.get(name), saved.get(name)
        if spec is None or not isinstance(have, Tensor) or have.dtype == spec.dtype:
            continue
        wide = _widened(saved, name, spec, plan)
        if wide is None:
            continue
        found.pop(name + UNITS, None)
        made = _made(wide, name, plan)
        for key, x in made.items():
            if sharding.is_dtensor(have):
                whole = plan.specs[key].shape(plan.place.shape)
                x = sharding.spread_as(x, param, plan.specs[key], whole)
            found[key] = x
    return found


def _widened(
    saved: Mapping[str, Any], name: str, spec: Accumulator, plan: Plan
) -> Tensor | None:
    """What is local of momenta, float32; None if they are in no format."""
    have, units = sharding.local(saved[name]), saved.get(name + UNITS)
    if have.dtype not in DTYPES.values():
        return None
    if have.dtype == torch.float32:
        return have
    if have.dtype == torch.int8:
        if not isinstance(units, Tensor) or len(have.shape) < len(spec.axes):
            return None
        units = sharding.local(units)
        if units.shape[:-1] != _rows_of(have, spec, plan):
            return None
    return widened([Stored(have, units, _axis(name, spec, plan))])[0]


def _made(wide: Tensor, name: str, plan: Plan) -> dict[str, Tensor]:
    """The arrays that `plan` asks for."""
    spec, units = plan.specs[name], plan.specs.get(name + UNITS)
    if spec.dtype == torch.float32:
        return {name: wide}
    device = wide.device
    made = {name: torch.empty(wide.shape, dtype=spec.dtype, device=device)}
    if units is not None:
        shape = (*_rows_of(wide, spec, plan), *units.behind)
        made[name + UNITS] = torch.empty(shape, dtype=units.dtype, device=device)
    kept = Stored(made[name], made.get(name + UNITS), _axis(name, spec, plan))
    write([kept], [wide], torch.zeros((), dtype=torch.int32, device=device), None)
    return made


def _axis(name: str, spec: Accumulator, plan: Plan) -> int:
    return int(spec.stack is not None) + COPIES[name] + plan.row_axis


def _rows_of(local: Tensor, spec: Accumulator, plan: Plan) -> tuple[int, ...]:
    """[*front, rows] of what is local of an array."""
    front = local.ndim - len(spec.axes)
    return (*local.shape[:front], local.shape[front + plan.row_axis])
