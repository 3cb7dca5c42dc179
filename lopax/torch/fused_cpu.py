"""The C core of element networks for torch on the CPU.

A rule that is nothing but its element network is stepped in two calls for all tensors.
For a rule that makes something else of the network's step (Celo2 orthogonalises it),
the core computes that step for one group of equal tensors at a time, and the rule does
the rest. What the core does not cover goes the plain way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax._core.native_build import NativeUnavailable
from lopax.native import library
from lopax.native.coverage import not_covered, tensor_not_covered
from lopax.torch import finite, plain
from lopax.torch.batch import Common, complete
from lopax.torch.cpu_tables import Table
from lopax.torch.errors import BackendUnavailable
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rule import Rule
from lopax.torch.working_copies import add_updates, outside_graphs


def create(rule: Rule) -> FusedCPU:
    """The backend for a rule.

    Raises `BackendUnavailable` if the core does not cover it, or cannot be had.
    """
    nets = {rule.element_net(role) for role in rule.roles or ("",)} - {None}
    if not nets:
        raise BackendUnavailable(
            f"there is no fused CPU kernel for {rule.name!r}; use backend='plain'"
        )
    net, *others = nets
    assert net is not None
    reason = not_covered(net)
    if others:
        reason = "the kernel is for one network, and its roles have several"
    if reason is not None:
        raise BackendUnavailable(f"{rule.name!r}: {reason}; use backend='plain'")
    return FusedCPU(core(net.hidden))


def core(hidden: int) -> Any:
    """The core for networks of this width; built or taken from the cache.

    Raises `BackendUnavailable` where there is no C compiler, or it fails, or
    `LOPAX_KERNELS=off`.
    """
    try:
        return library.load(hidden)
    except NativeUnavailable as error:
        raise BackendUnavailable(
            f"the fused CPU kernels cannot be had: {error}. Use backend='plain'.",
            expected=error.expected,
        ) from None


class FusedCPU:
    """Steps the entries the core covers, and hands on the others; see
    `backends.Backend`."""

    name = "fused"

    def __init__(self, core: Any):
        self._core = core
        self._plain = PlainBackend()
        self._reasons: dict[Any, str | None] = {}  # why a tensor goes the plain way
        self._key: Any = None
        self._table: Table
        self._groups: list[list[Entry]] = []
        self._mine: list[Entry] = []
        self._rest: list[Entry] = []

    @outside_graphs
    def begin(self, rule: Rule, entries: Sequence[Entry]) -> finite.Look:
        self._sort(rule, entries)
        key = tuple(e.place for e in self._mine)
        if key != self._key:
            self._key, self._table = key, Table(self._core, rule, self._mine)
        self._table.point(rule, self._mine, self._rest)
        if self._table.shared:  # threads would write to one place
            return self._plain.begin(rule, entries)
        found = torch.tensor(self._table.begin(), dtype=torch.bool, device="cpu")
        if not self._rest:
            return finite.Look(found)
        rest = self._plain.begin(rule, self._rest)
        # What the core steps is clipped in any case.
        return finite.Look(found | rest.bad, rest.within)

    @outside_graphs
    def finish(
        self, rule: Rule, entries: Sequence[Entry], common: Common, alive: Tensor
    ) -> Tensor:
        held, table = torch.zeros((), dtype=torch.bool, device="cpu"), self._table
        if table.shared:
            held = self._plain.finish(rule, entries, common, alive)
        elif alive.item():  # on the CPU nothing has to be waited for
            # `advance` has told the entries something since `begin`.
            self._sort(rule, entries)
            if self._mine:
                kept = table.tell(rule, self._mine, common)
                if rule.only_elements:
                    held |= table.finish(0, len(self._mine), common.scale.item())
                    add_updates(self._mine, table.operands)
                else:
                    held |= self._finish_groups(rule, common, alive)
                del kept
            if self._rest:
                held |= self._plain.finish(rule, self._rest, common, alive)
        table.operands, self._mine, self._rest, self._groups = [], [], [], []
        return held

    def _sort(self, rule: Rule, entries: Sequence[Entry]) -> None:
        """Which entries the core steps, equal ones together."""
        self._rest = [e for e in entries if not self._covers(rule, e)]
        self._mine = [e for e in entries if self._covers(rule, e)]
        if not rule.only_elements:
            self._groups = plain.grouped(self._mine)
            self._mine = [e for group in self._groups for e in group]

    def _covers(self, rule: Rule, e: Entry) -> bool:
        if e.place not in self._reasons:
            role = e.place.role
            net = rule.element_net(role)
            self._reasons[e.place] = (
                f"role {role!r} has no element network"
                if net is None
                else tensor_not_covered(net, e.place)
            )
        return self._reasons[e.place] is None

    def describe(self) -> str:
        reasons = dict.fromkeys(r for r in self._reasons.values() if r is not None)
        return "; ".join(["fused", *(f"plain where {r}" for r in reasons)])

    def _finish_groups(self, rule: Rule, common: Common, alive: Tensor) -> Tensor:
        """[] bool: some update was not finite."""
        at, rows, held = 0, self._table.rows, []
        rate = common.scale * alive
        for members in self._groups:
            count, shape = len(members), members[0].part
            step = torch.empty((count, *shape), dtype=torch.float32, device="cpu")
            here = slice(at, at + count)
            size = step[0].numel() * step.element_size()
            rows["out"][here] = step.data_ptr() + size * np.arange(count)
            self._table.finish(at, count, 0.0)
            batch = plain.batch_of(
                rule, members, step, bool(rows["unreached"][here].any())
            )
            update = complete(rule.step(batch, common, alive))
            held.append(plain.commit(members, batch, update, rate))
            at += count
        return torch.stack(held).any()
