"""Momenta in bfloat16 or bytes, whose formats `lopax._core.narrow` tells, in torch.

An array `momenta` of a parameter's state is then bfloat16, or int8 with the units of
its blocks, float32, beside it under `momenta_units`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax._core import narrow
from lopax._core.narrow import COPIES, FIELDS, Blocks
from lopax.rules import form
from lopax.torch import structure
from lopax.torch.geometry import Accumulator
from lopax.torch.pieces import GPU_PART

DTYPES = {name: getattr(torch, name) for name in narrow.DTYPES}
UNITS = "_units"
CPU_PART = 1 << 17
"""Elements at a time: what is between stays near the processor, and calls are few."""

_foreach_copy: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]


def has_momenta(rule: form.Rule) -> bool:
    """Whether tensors of some role have a state that may be narrow."""
    roles = rule.roles or ("",)
    names = [name for role in roles for name in structure.arrays(rule.keeps(role))]
    return any(name in FIELDS for name in names)


def specs(
    wide: Mapping[str, Accumulator], shape: tuple[int, ...], dtype: str, axis: int
) -> dict[str, Accumulator]:
    """The arrays that a parameter of this shape keeps, from those of a step.

    **Arguments:**

    - `axis`: of the rows that blocks do not cross; one along which it may be sharded.
    """
    found, blocks = {}, Blocks.of(shape, axis)
    for name, spec in wide.items():
        found[name] = spec
        if name not in FIELDS or dtype == "float32":
            continue
        if dtype == "int8" and blocks is None:
            continue
        found[name] = spec._replace(dtype=DTYPES[dtype])
        if dtype == "int8" and blocks is not None:
            units = spec._replace(axes=(axis,), behind=(blocks.blocks,))
            found[name + UNITS] = units
    return found


class Stored(NamedTuple):
    """A narrow array: of one or several tensors of equal shape."""

    array: Tensor  # [*front, *s]
    units: Tensor | None  # [*front, rows, blocks], of one in bytes
    axis: int  # of `array`: the rows

    def in_rows(self, x: Tensor) -> Tensor:
        """[all rows, numbers in each] of an array like it; a view for the first axis
        of contiguous ones."""
        assert self.units is not None
        front = self.units.ndim - 2
        lead = math.prod(self.units.shape[:-1])
        return x.movedim(self.axis, front).reshape(lead, -1 if lead else 0)

    def placed(self, rows: Tensor) -> Tensor:
        """The inverse."""
        assert self.units is not None
        front = self.units.ndim - 2
        sizes = [*self.array.shape]
        sizes.insert(front, sizes.pop(self.axis))
        return rows.reshape(sizes).movedim(front, self.axis)

    @property
    def key(self) -> tuple[int, int]:
        """(numbers in a row, blocks of it): such can be computed together."""
        assert self.units is not None
        lead = math.prod(self.units.shape[:-1])
        return self.array.numel() // max(lead, 1), self.units.shape[-1]


def stored(state: Mapping[str, Tensor], stack: int, axis: int) -> dict[str, Stored]:
    """The narrow arrays of a state.

    **Arguments:**

    - `stack`: 1 if the arrays are those of several tensors, stacked in front, else 0.
    - `axis`: of the rows, counted from a tensor's first.
    """
    found = {}
    for name in FIELDS:
        x = state.get(name)
        if x is not None and x.dtype != torch.float32:
            where = stack + COPIES[name] + axis
            found[name] = Stored(x, state.get(name + UNITS), where)
    return found


def widened(arrays: Sequence[Stored]) -> list[Tensor]:
    """New float32 arrays, exactly the numbers that are kept."""
    found: list[Any] = [x.array.float() if x.units is None else None for x in arrays]
    for places in _together([i for i, x in enumerate(found) if x is None], arrays):
        some = [arrays[i] for i in places]
        row, count = some[0].key
        codes = _joined([x.in_rows(x.array) for x in some])
        units = _joined([_units(x).reshape(-1, count) for x in some])
        into = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)

        def one(part: slice, codes: Tensor = codes, units: Tensor = units) -> Tensor:
            code = _in_blocks(codes[part].int(), units.shape[1])
            wide = narrow.decode(_WORDS, code, units[part, :, None])
            return wide.flatten(1)[:, : codes.shape[1]]

        _by_parts(one, (into,), row)
        for i, x, rows in zip(places, some, into.split(_rows(some)), strict=True):
            found[i] = x.placed(rows).contiguous()
    return found


def write(
    arrays: Sequence[Stored], wide: Sequence[Tensor], step: Tensor, alive: Tensor | None
) -> None:
    """Keeps float32 numbers, rounded stochastically.

    **Arguments:**

    - `step`: [] int32, the updates made of which this is the last.
    - `alive`: [] 0.0 if nothing is to be changed; None: it surely is.
    """
    for places in _together(range(len(arrays)), arrays):
        some, new = [arrays[i] for i in places], [wide[i] for i in places]
        if some[0].units is None:
            _write_bfloat16(some, new, step, alive)
        else:
            _write_bytes(some, new, step, alive)


def _write_bfloat16(
    some: Sequence[Stored], new: Sequence[Tensor], step: Tensor, alive: Tensor | None
) -> None:
    numbers = _joined([x.reshape(-1) for x in new])
    into = some[0].array
    direct = len(some) == 1 and alive is None and into.is_contiguous()
    into = into.view(-1) if direct else torch.empty_like(numbers, dtype=torch.bfloat16)

    def one(part: slice) -> Tensor:
        return narrow.bfloat16(_WORDS, numbers[part], step)

    _by_parts(one, (into,), 1)
    if not direct:
        pieces = into.split([x.numel() for x in new])
        shaped = [x.view(n.shape) for x, n in zip(pieces, new, strict=True)]
        _keep([x.array for x in some], shaped, alive)


def _write_bytes(
    some: Sequence[Stored], new: Sequence[Tensor], step: Tensor, alive: Tensor | None
) -> None:
    row, count = some[0].key
    rows = _joined([x.in_rows(n) for x, n in zip(some, new, strict=True)])
    codes = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    units = torch.empty((len(rows), count), dtype=torch.float32, device=rows.device)

    def both(part: slice) -> tuple[Tensor, Tensor]:
        x = _in_blocks(rows[part], count)
        unit = narrow.units(_WORDS, x.abs().amax(-1, keepdim=True))
        code = narrow.encode(_WORDS, x, unit, step)
        return code.flatten(1)[:, : rows.shape[1]], unit[..., 0]

    _by_parts(both, (codes, units), row)
    placed = zip(some, codes.split(_rows(some)), strict=True)
    _keep([x.array for x in some], [x.placed(c) for x, c in placed], alive)
    shaped = zip(some, units.split(_rows(some)), strict=True)
    found = [u.view(_units(x).shape) for x, u in shaped]
    _keep([_units(x) for x in some], found, alive)


def _rows(some: Sequence[Stored]) -> list[int]:
    return [math.prod(_units(x).shape[:-1]) for x in some]


def _most(device: torch.device) -> int:
    return CPU_PART if device.type == "cpu" else GPU_PART


def _units(x: Stored) -> Tensor:
    assert x.units is not None
    return x.units


def _together(which: Iterable[int], arrays: Sequence[Stored]) -> list[list[int]]:
    """Which arrays to compute together: small ones that are alike, large ones alone."""
    found: dict[Any, list[int]] = {}
    for i in which:
        x = arrays[i]
        large = x.array.numel() >= _most(x.array.device)
        key = "bfloat16" if x.units is None else x.key
        found.setdefault((i if large else None, key), []).append(i)
    return [*found.values()]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])


def _in_blocks(rows: Tensor, count: int) -> Tensor:
    """[rows, blocks, length], with zeros behind each row."""
    row = rows.shape[1]
    length = -(-row // count)
    padding = count * length - row
    if padding:
        rows = torch.nn.functional.pad(rows, (0, padding))
    return rows.reshape(len(rows), count, length)


def _by_parts(make: Callable[[slice], Any], into: tuple[Tensor, ...], row: int) -> None:
    """Fills arrays with what `make` says of so many rows at a time that what is between
    stays in a processor's cache."""
    rows = len(into[0])
    most = max(1, _most(into[0].device) // max(row, 1))
    if torch.compiler.is_compiling():
        most = max(rows, 1)
    for at in range(0, rows, most):
        part = slice(at, min(at + most, rows))
        made = make(part)
        for x, new in zip(into, made if len(into) > 1 else (made,), strict=True):
            x[part] = new


def _keep(old: Sequence[Tensor], new: Sequence[Tensor], alive: Tensor | None) -> None:
    if alive is not None:
        new = [torch.where(alive > 0.0, x, o) for x, o in zip(new, old, strict=True)]
    _foreach_copy([*old], [*new])


class _Words:
    """`narrow.Words` in torch."""

    @staticmethod
    def bits(x: Tensor) -> Tensor:
        return x.view(torch.int32)

    @staticmethod
    def floats(bits: Tensor) -> Tensor:
        return bits.view(torch.float32)

    @staticmethod
    def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(condition, x, y)

    @staticmethod
    def bounded(n: Tensor) -> Tensor:
        return n.clamp_max_(127)


_WORDS = _Words()
