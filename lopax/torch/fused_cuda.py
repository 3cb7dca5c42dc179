"""Fused kernels for CUDA devices: tables and launches around the Triton kernels."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax.torch.celo import CeloRule
from lopax.torch.celo_adam import CeloAdamRule
from lopax.torch.errors import BackendUnavailable
from lopax.torch.geometry import Blocks
from lopax.torch.memory import share_memory
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rule import Rule
from lopax.torch.working_copies import (
    Operand,
    add_updates,
    operands,
    outside_graphs,
)

ITEM, BLOCK = 4096, 512  # elements of a program, and at a time
OUT, RED, CHUNK = 64, 64, 1024  # tiles of the factored sums
ROWS = 1024
_WRITTEN = np.array([True, False, True, True, True, True])
NATIVE = (torch.float32, torch.bfloat16, torch.float16)


def create(rule: Rule) -> FusedCUDA:
    """The backend for a rule.

    Raises `BackendUnavailable` without Triton, or if there is no kernel for the rule.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        raise BackendUnavailable(
            "the fused CUDA kernels need Triton (pip install triton); or use "
            "backend='plain'"
        ) from None
    if isinstance(rule, CeloRule) and rule.config.hidden == 4:
        return FusedCelo(rule)
    if isinstance(rule, CeloAdamRule):
        return FusedCeloAdam(rule)
    raise BackendUnavailable(
        f"there is no fused CUDA kernel for {rule.name!r} with these settings; use "
        "backend='plain'"
    )


class FusedCUDA:
    """What the two rules share: one `Tables` per pair of dtypes."""

    name = "fused"

    def __init__(self, rule: Any):
        self._device = rule.theta["scheduler/centres"].device
        self._tables: dict[Any, Tables] = {}
        self._step: list[tuple[Tables, list[Entry], list[Operand]]] = []
        self._used: list[Tables] = []
        self._shared = False  # some tensors lie in the same memory
        self._plain = PlainBackend()

    @outside_graphs
    def begin(self, rule: Rule, entries: Sequence[Entry]) -> Tensor:
        with self._on_device():
            self._point(entries)
            if self._shared:  # programs would write to one place
                return self._plain.begin(rule, entries)
            flaw = torch.zeros((), dtype=torch.int32, device=self._device)
            for tables, _, _ in self._step:
                self._examine(tables, flaw)
            return flaw > 0

    def _point(self, entries: Sequence[Entry]) -> None:
        """Tables that are up to date for this step."""
        changed = False
        groups: dict[Any, tuple[list[Entry], list[Operand]]] = {}
        for e, o in zip(entries, operands(entries, NATIVE), strict=True):
            kept = groups.setdefault((o.param.dtype, o.grad.dtype), ([], []))
            kept[0].append(e)
            kept[1].append(o)
        self._step = []
        for dtypes, (members, found) in groups.items():
            key = (*dtypes, *((e.shape, e.axes, e.matrix) for e in members))
            if key not in self._tables:
                # Another set of tensors has gradients: its tables replace the old.
                stale = [k for k in self._tables if k[:2] == dtypes]
                for old in stale:
                    del self._tables[old]
                self._tables[key] = Tables(members, dtypes, self._device)
            tables = self._tables[key]
            changed |= tables.point(members, found)
            self._step.append((tables, members, found))
        used = [tables for tables, _, _ in self._step]
        if changed or used != self._used:
            self._used = used
            self._shared = share_memory(
                np.concatenate([np.array(t.addresses, np.int64) for t in used]),
                np.concatenate([t.extents for t in used]),
                np.concatenate([np.tile(_WRITTEN, len(t.extents) // 6) for t in used]),
            )

    @outside_graphs
    def finish(
        self, rule: Rule, entries: Sequence[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        if self._shared:
            self._plain.finish(rule, entries, scale, alive)
            self._step = []
        for tables, members, found in self._step:
            with self._on_device():
                self._advance(tables, members, scale, alive)
            if not all(o.direct for o in found):
                for o in found:
                    if not o.direct:  # a skipped step wrote nothing: no update
                        o.param.copy_(torch.where(alive > 0, o.param, 0.0))
                add_updates(members, found)
        self._step = []

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the current device, wherever the tensors are."""
        if self._device.type == "cuda":
            return torch.cuda.device(self._device)
        return contextlib.nullcontext()

    def _examine(self, tables: Tables, flaw: Tensor) -> None:
        raise NotImplementedError

    def _advance(
        self, tables: Tables, members: list[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        raise NotImplementedError


class FusedCelo(FusedCUDA):
    """Celo: a statistics pass and an apply pass, with small kernels around them."""

    def __init__(self, rule: CeloRule):
        super().__init__(rule)
        theta, c = rule.theta, rule.config
        w0 = theta["rule/w0"]
        parts = [
            *(w0[:15], w0[27:], w0[15:18], w0[21:24], w0[18:21], w0[24:27]),
            theta["rule/b0"],
            *(theta[f"rule/{k}"] for k in ("w1", "b1", "w2", "b2")),
        ]
        self._theta = torch.cat([p.flatten() for p in parts])
        second = theta["momentum_weights"].new_tensor([1.0 - c.second_decay])
        self._rates = torch.cat([theta["momentum_weights"], second])
        self._factored = theta["factored_weights"].clone()
        self._exp_mult, self._bounds = c.exp_mult, c.bounds

    def _examine(self, tables: Tables, flaw: Tensor) -> None:
        from lopax.torch import celo_triton_factors

        kernels: Any = celo_triton_factors
        kernels.factor_sums[(len(tables.sums),)](
            tables.geometry,
            tables.pointers,
            tables.sums,
            tables.scratch,
            flaw,
            GRAD=tables.grad_type,
            OUT=OUT,
            RED=RED,
            CHUNK=CHUNK,
            num_warps=8,
        )

    def _advance(
        self, tables: Tables, members: list[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        from lopax.torch import celo_triton, celo_triton_factors

        factors: Any = celo_triton_factors
        kernels: Any = celo_triton
        t, count = tables, len(members)
        if t.sizes is None:
            between = [self._bounds.of(e.shape, e.matrix) for e in members]
            t.sizes = torch.tensor(between, dtype=torch.float32, device=self._device)
        where = (t.geometry, t.pointers)
        types = {"PARAM": t.param_type, "GRAD": t.grad_type}
        factors.factor[(count, 2)](
            *where,
            t.scratch,
            self._theta,
            self._factored,
            alive,
            BLOCK=ROWS,
            num_warps=8,
        )
        if len(t.groups):
            factors.row_scales[(len(t.groups),)](
                *where, t.groups, t.scratch, alive, BLOCK=ROWS, num_warps=8
            )
        kernels.update[(len(t.items),)](
            *where,
            t.items,
            t.scratch,
            self._rates,
            alive,
            **types,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )
        kernels.fold[(count,)](
            t.geometry, t.scratch, self._theta, t.sizes, scale, alive, ITEMS=128
        )
        kernels.apply[(len(t.items),)](
            *where,
            t.settings,
            t.items,
            t.scratch,
            self._theta,
            scale,
            alive,
            self._exp_mult,
            **types,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )


class FusedCeloAdam(FusedCUDA):
    """Celo-Adam: one pass to find flaws, one to step."""

    def __init__(self, rule: CeloAdamRule):
        super().__init__(rule)
        self._b1, self._b2 = rule.config.b1, rule.config.b2

    def _examine(self, tables: Tables, flaw: Tensor) -> None:
        from lopax.torch import adam_triton

        kernels: Any = adam_triton
        kernels.find_flaw[(len(tables.items),)](
            tables.geometry,
            tables.pointers,
            tables.items,
            flaw,
            GRAD=tables.grad_type,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )

    def _advance(
        self, tables: Tables, members: list[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        from lopax.torch import adam_triton

        kernels: Any = adam_triton
        steps = [e.state["step"] for e in members]
        torch._foreach_add_(steps, alive)  # pyright: ignore[reportPrivateImportUsage]
        t = torch.stack(steps).clamp_min(1.0)
        corrections = torch.stack([1.0 - self._b1**t, 1.0 - self._b2**t], 1)
        kernels.adam[(len(tables.items),)](
            tables.geometry,
            tables.pointers,
            tables.settings,
            corrections,
            tables.items,
            scale,
            alive,
            1.0 - self._b1,
            1.0 - self._b2,
            PARAM=tables.param_type,
            GRAD=tables.grad_type,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )


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
        self.sizes: Tensor | None = None  # [tensors, 2] float32, what a rule made it
        self.addresses: list[int] = []
        self.extents = np.array(
            [n for e in entries for n in _bytes(e, dtypes)], np.int64
        )
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
    n, s = math.prod(e.shape), e.state
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
    blocks, n = Blocks.of(e.shape, e.axes), math.prod(e.shape)
    vector = e.axes is None
    if n >= 1 << 31:
        raise BackendUnavailable(
            f"a parameter of shape {e.shape} has 2^31 elements or more, too many for "
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
