"""What the fused backends for CUDA devices share: tables, and when to launch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax.torch import finite
from lopax.torch.batch import Common
from lopax.torch.cuda_tables import Tables
from lopax.torch.memory import share_memory
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rule import Rule
from lopax.torch.working_copies import (
    Operand,
    add_updates,
    operands,
    outside_graphs,
)

_WRITTEN = np.array([True, False, True, True, True, True])
NATIVE = (torch.float32, torch.bfloat16, torch.float16)


class FusedCUDA:
    """A backend with one `Tables` per pair of dtypes; subclasses launch the kernels."""

    name = "fused"

    def __init__(self, rule: Rule):
        self._device = rule.device
        self._limit = rule.grad_clip
        self._tables: dict[Any, Tables] = {}
        self._step: list[tuple[Tables, list[Entry], list[Operand]]] = []
        self._used: list[Tables] = []
        self._shared = False  # some tensors lie in the same memory
        self._plain = PlainBackend()

    def describe(self) -> str:
        return "fused"

    @outside_graphs
    def begin(self, rule: Rule, entries: Sequence[Entry]) -> finite.Look:
        with self._on_device():
            self._point(entries)
            if self._shared:  # programs would write to one place
                return self._plain.begin(rule, entries)
            flaw = torch.zeros((), dtype=torch.int32, device=self._device)
            for tables, _, _ in self._step:
                self._examine(tables, flaw)
            return finite.Look(flaw > 0)

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
            key = (*dtypes, *(e.place for e in members))
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
        self, rule: Rule, entries: Sequence[Entry], common: Common, alive: Tensor
    ) -> Tensor:
        held = torch.zeros((), dtype=torch.bool, device=self._device)
        if self._shared:
            held = self._plain.finish(rule, entries, common, alive)
            self._step = []
        for tables, members, found in self._step:
            with self._on_device():
                self._advance(tables, members, common.scale, alive)
            if not all(o.direct for o in found):
                for o in found:
                    if not o.direct:  # a skipped step wrote nothing: no update
                        o.param.copy_(torch.where(alive > 0, o.param, 0.0))
                add_updates(members, found)
        self._step = []
        return held

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
