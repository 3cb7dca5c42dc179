"""Device tables for the Triton kernels: where tensors are, and who does what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax.native.blocks import Blocks
from lopax.torch.errors import BackendUnavailable
from lopax.torch.plain import Entry
from lopax.torch.working_copies import Operand

ITEM = 4096  # elements of a program
OUT, CHUNK = 64, 1024  # tiles of the factored sums


class Tables:
    """Device tables for one list of tensors: geometry and work lists, which hold as
    long as the shapes do, and pointers and settings, which a step may change."""

    def __init__(
        self, entries: Sequence[Entry], dtypes: Sequence[Any], device: torch.device
    ):
        import triton.language as tl

        from lopax.torch.triton_tables import FIELDS

        names = {
            torch.float32: tl.float32,
            torch.bfloat16: tl.bfloat16,
            torch.float16: tl.float16,
        }
        self.param_type, self.grad_type = (names[d] for d in dtypes)
        self._device = device
        rows, sums, groups, items, free = [], [], [], [], 0
        for index, e in enumerate(entries):
            row, free = _geometry(e, free)
            rows.append([row[name] for name in FIELDS])
            kinds = ((1, row["nw"], row["chunks_w"]), (0, row["nu"], row["chunks_u"]))
            for over_y, outputs, chunks in kinds:
                tiles = range(-(-outputs // OUT))
                sums += [
                    [index, over_y, *place]
                    for place in itertools.product(tiles, range(chunks))
                ]
            row_length = row["nu"] if row["row_over_x"] else row["nw"]
            if not row["vector"]:
                count = row_length // row["groups_q"]
                pairs = itertools.product(range(3), range(count))
                groups += [[index, *pair] for pair in pairs]
            items += [[index, i] for i in range(row["items"])]
        self.geometry = torch.tensor(rows, dtype=torch.int64, device=device)
        self.sums = torch.tensor(sums, dtype=torch.int32, device=device)
        self.groups = torch.tensor(groups, dtype=torch.int32, device=device)
        self.items = torch.tensor(items, dtype=torch.int32, device=device)
        self.scratch = torch.empty(free, dtype=torch.float32, device=device)
        self.pointers = torch.empty(0, dtype=torch.int64, device=device)
        self.settings = torch.empty(0, dtype=torch.float32, device=device)
        self.addresses: list[int] = []
        self.extents = np.array(
            [n for e in entries for n in _bytes(e, dtypes)], np.int64
        )
        self.sizes: Tensor | None = None  # [tensors, 2] float32, what a rule made it
        self._numbers: list[Any] = []

    def point(self, entries: Sequence[Entry], found: Sequence[Operand]) -> bool:
        """Sends what changed since the last step, and says whether an address did;
        never waits for the device."""
        addresses = []
        for e, o in zip(entries, found, strict=True):
            s = e.state
            first, second = s.get("momenta", s.get("momentum")), s["second"]
            row = s.get("row", s.get("full", second))
            col = s.get("col", row)
            used = (o.param, o.grad, first, second, row, col)
            addresses += [x.data_ptr() for x in used]  # type: ignore[union-attr]
        changed = addresses != self.addresses
        if changed:
            self.pointers = self._send(addresses, torch.int64)
            self.addresses = addresses
        if any(isinstance(e.lr, Tensor) for e in entries):
            like: Any = {"dtype": torch.float32, "device": self._device}
            rates = [torch.as_tensor(e.lr, **like) for e in entries]
            pairs = zip(entries, found, strict=True)
            rest = [(e.weight_decay, not o.direct) for e, o in pairs]
            others = self._send(
                [float(x) for pair in rest for x in pair], torch.float32
            )
            self.settings = torch.cat(
                [torch.stack(rates)[:, None], others.view(-1, 2)], 1
            )
            self._numbers = []
            return changed
        numbers = []
        for e, o in zip(entries, found, strict=True):
            numbers += [float(e.lr), float(e.weight_decay), float(not o.direct)]
        if numbers != self._numbers:
            self.settings = self._send(numbers, torch.float32)
            self._numbers = numbers
        return changed

    def _send(self, values: list[Any], dtype: torch.dtype) -> Tensor:
        host = torch.tensor(values, dtype=dtype, device="cpu")
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)


def _bytes(e: Entry, dtypes: Sequence[Any]) -> tuple[int, ...]:
    """Of the six arrays in the order of their addresses; 0 for what is named twice."""
    n, s = math.prod(e.part), e.state
    first = s["momenta"] if "momenta" in s else s["momentum"]
    row = s["row"] if "row" in s else s.get("full")
    col = s.get("col")
    return (
        *(n * d.itemsize for d in dtypes),
        first.nbytes,
        4 * n,
        0 if row is None else row.nbytes,
        0 if col is None else col.nbytes,
    )


def _geometry(e: Entry, free: int) -> tuple[dict[str, int], int]:
    """One tensor's fields, its scratch memory beginning at `free`; the next free."""
    axes, shape = e.place.factored, e.place.shape
    blocks, n, vector = Blocks.of(shape, axes), math.prod(shape), axes is None
    if n >= 1 << 31:
        raise BackendUnavailable(
            f"a parameter of shape {shape} has 2^31 elements or more, too many for "
            "the fused kernels; use backend='plain'"
        )
    inner = blocks.b * blocks.y * blocks.c
    row = {
        "n": n,
        "inner_u": inner,
        "length_x": blocks.x,
        "inner_w": blocks.c,
        "length_y": blocks.y,
        "nu": 0 if vector else blocks.a * inner,
        "nw": blocks.a * blocks.x * blocks.b * blocks.c,
        "vector": int(vector),
        "row_over_x": int(blocks.row_over_x),
        "groups_q": blocks.y if blocks.row_over_x else blocks.x,
        "groups_r": blocks.c if blocks.row_over_x else blocks.b * blocks.c,
        "items": -(-n // ITEM),
    }
    row["chunks_u"] = -(-blocks.x // CHUNK) if not vector else 0
    row["chunks_w"] = -(-blocks.y // CHUNK)
    sizes = {
        "sum_u": row["chunks_u"] * row["nu"],
        "sum_w": row["chunks_w"] * row["nw"],
        "scale_u": 3 * row["nu"],
        "scale_w": 3 * row["nw"],
        "hidden_u": 4 * row["nu"],
        "hidden_w": 4 * row["nw"],
        "folded": 18 * 4 + 1,
        "squares": 18 * row["items"],
    }
    for name, size in sizes.items():
        row[name] = free
        free += size
    return row, free
