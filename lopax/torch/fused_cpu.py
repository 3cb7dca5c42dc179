"""The C core of element networks for torch on the CPU: tables of addresses, and calls.

A rule that is nothing but its element network is stepped in two calls for all tensors.
For a rule that makes something else of the network's step (Celo2 orthogonalises it),
the core computes that step for one group of equal tensors at a time, and the rule does
the rest. What the core does not cover goes the plain way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax._core.native_build import NativeUnavailable
from lopax.native import library, tables
from lopax.native.blocks import Blocks
from lopax.native.coverage import not_covered, tensor_not_covered
from lopax.rules.element_net import ARRAYS, ElementNet, Numbers
from lopax.torch import finite, plain
from lopax.torch.batch import Common, complete
from lopax.torch.errors import BackendUnavailable
from lopax.torch.memory import share_memory
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rule import Rule, place_of
from lopax.torch.working_copies import (
    Operand,
    add_updates,
    operands,
    outside_graphs,
)

_OPERANDS = ("grad", "param", "momenta", "second", "row", "col")
_WRITTEN = np.array([[False], [True], [True], [True], [True], [True]])


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
        self._table = np.zeros(0, tables.TENSOR)
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")
        self._addresses = self._sizes = np.zeros((6, 0), np.int64)  # of the operands
        self._others: Any = ()
        self._shared = False  # some tensors lie in the same memory
        self._groups: list[list[Entry]] = []
        self._mine: list[Entry] = []
        self._rest: list[Entry] = []
        self._operands: list[Operand] = []

    @outside_graphs
    def begin(self, rule: Rule, entries: Sequence[Entry]) -> finite.Look:
        self._sort(rule, entries)
        key = tuple((e.shape, e.axes, e.matrix, e.role) for e in self._mine)
        if key != self._key:
            self._lay_out(key)
        self._point(rule)
        if self._shared:  # threads would write to one place
            return self._plain.begin(rule, entries)
        bad = self._core.elements_begin(*self._tensors(), None, _threads())
        found = torch.tensor(bool(bad), dtype=torch.bool, device="cpu")
        if not self._rest:
            return finite.Look(found)
        rest = self._plain.begin(rule, self._rest)
        # What the core steps is clipped in any case.
        return finite.Look(found | rest.bad, rest.within)

    @outside_graphs
    def finish(
        self, rule: Rule, entries: Sequence[Entry], common: Common, alive: Tensor
    ) -> Tensor:
        held = torch.zeros((), dtype=torch.bool, device="cpu")
        if self._shared:
            held = self._plain.finish(rule, entries, common, alive)
        elif alive.item():  # on the CPU nothing has to be waited for
            # `advance` has told the entries something since `begin`.
            self._sort(rule, entries)
            if self._mine:
                kept = self._set_rule(rule, common)
                if rule.only_elements:
                    held |= self._finish(0, len(self._table), common.scale.item())
                    add_updates(self._mine, self._operands)
                else:
                    held |= self._finish_groups(rule, common, alive)
                del kept
            if self._rest:
                held |= self._plain.finish(rule, self._rest, common, alive)
        self._operands, self._mine, self._rest, self._groups = [], [], [], []
        return held

    def _sort(self, rule: Rule, entries: Sequence[Entry]) -> None:
        """Which entries the core steps, equal ones together."""
        self._rest = [e for e in entries if not self._covers(rule, e)]
        self._mine = [e for e in entries if self._covers(rule, e)]
        if not rule.only_elements:
            self._groups = plain.grouped(self._mine)
            self._mine = [e for group in self._groups for e in group]

    def _covers(self, rule: Rule, e: Entry) -> bool:
        key = (e.role, e.shape, e.axes, e.matrix)
        if key not in self._reasons:
            net = rule.element_net(e.role)
            self._reasons[key] = (
                f"role {e.role!r} has no element network"
                if net is None
                else tensor_not_covered(net, e.shape, e.axes, e.matrix)
            )
        return self._reasons[key] is None

    def describe(self) -> str:
        reasons = dict.fromkeys(r for r in self._reasons.values() if r is not None)
        return "; ".join(["fused", *(f"plain where {r}" for r in reasons)])

    def _tensors(self) -> tuple[int, int]:
        return self._table.ctypes.data, len(self._table)

    def _finish(self, first: int, count: int, decay: float) -> bool:
        """Whether a guarded result was not finite."""
        start = self._table.ctypes.data + first * tables.TENSOR.itemsize
        found = self._core.elements_finish(start, count, decay, 1, None, _threads())
        return found != 0

    def _finish_groups(self, rule: Rule, common: Common, alive: Tensor) -> Tensor:
        """[] bool: some update was not finite."""
        at, table, held = 0, self._table, []
        rate = common.scale * alive
        for members in self._groups:
            count, shape = len(members), members[0].shape
            step = torch.empty((count, *shape), dtype=torch.float32, device="cpu")
            here = slice(at, at + count)
            size = step[0].numel() * step.element_size()
            table["out"][here] = step.data_ptr() + size * np.arange(count)
            self._finish(at, count, 0.0)
            batch = plain.batch_of(
                rule, members, step, bool(table["unreached"][here].any())
            )
            update = complete(rule.step(batch, common, alive))
            held.append(plain.commit(members, batch, update, rate))
            at += count
        return torch.stack(held).any()

    def _lay_out(self, key: Sequence[Any]) -> None:
        """Geometry, which holds as long as the shapes do."""
        table = np.zeros(len(key), tables.TENSOR)
        for row, (shape, axes, *_) in zip(table, key, strict=True):
            blocks = Blocks.of(shape, axes)
            for name in ("a", "x", "b", "y", "c", "row_over_x"):
                row[name] = getattr(blocks, name)
            row["vector"] = axes is None
        self._table, self._key = table, tuple(key)
        self._rules, self._factors = np.zeros(0, tables.RULE), np.ones(())
        self._addresses = self._sizes = np.zeros((6, 0), np.int64)

    def _set_bands(self) -> None:
        """How tensors are cut, and their scratch memory; depends on the rule's flags
        too."""
        table, base = self._table, self._table.ctypes.data
        needs = [
            self._core.elements_prepare(base + i * tables.TENSOR.itemsize)
            for i in range(len(table))
        ]
        starts = np.concatenate([[0], np.cumsum(needs)])
        size = int(starts[-1])
        self._scratch = torch.empty(size, dtype=torch.float32, device="cpu")
        table["scratch"] = self._scratch.data_ptr() + 4 * starts[:-1]
        n, rows, cols = table["n"], *_moment_sizes(table)
        self._sizes = 4 * np.stack([n, n, 3 * n, n, rows, cols]).astype(np.int64)
        self._addresses = np.zeros_like(self._sizes)

    def _point(self, rule: Rule) -> None:
        """The step's pointers and settings."""
        table, mine = self._table, self._mine
        net = _net(rule, mine)
        if net is not None and not len(self._rules):
            ranks = [tables.rule(net, rank, rule.grad_clip) for rank in (1, 2)]
            self._rules = np.concatenate(ranks)
            self._factors = np.array([rule.factor(place_of(e)) for e in mine])
            where = np.where(table["vector"] != 0, 0, self._rules.itemsize)
            table["rule"] = self._rules.ctypes.data + where
            self._set_bands()
        self._operands = operands(mine, (torch.float32,))
        table["param"] = [o.param.data_ptr() for o in self._operands]
        table["grad"] = [o.grad.data_ptr() for o in self._operands]
        table["out"] = table["param"]
        table["add"] = [o.direct for o in self._operands]
        for name, alternative in (
            ("momenta", "momenta"),
            ("second", "second"),
            ("row", "full"),
            ("col", "full"),
        ):
            table[name] = [
                (e.state[name] if name in e.state else e.state[alternative]).data_ptr()
                for e in mine
            ]
        table["lr"] = [float(e.lr) for e in mine]
        table["decay"], table["guard"] = [e.weight_decay for e in mine], 1
        if not rule.only_elements:  # the rule makes the update, from the bare step
            table["add"], table["guard"], table["lr"], table["decay"] = 0, 0, 1.0, 0.0
        addresses = np.stack([table[name] for name in _OPERANDS]).astype(np.int64)
        others = [_extent(x) for e in self._rest for x in _arrays(e)]
        if others != self._others or not np.array_equal(addresses, self._addresses):
            written = np.broadcast_to(_WRITTEN, addresses.shape)
            more = np.array(others, np.int64).reshape(-1, 3)
            self._shared = share_memory(
                np.concatenate([addresses.ravel(), more[:, 0]]),
                np.concatenate([self._sizes.ravel(), more[:, 1]]),
                np.concatenate([written.ravel(), more[:, 2] != 0]),
            )
            self._addresses, self._others = addresses, others

    def _set_rule(self, rule: Rule, common: Common) -> list[Tensor]:
        """The network's pointers; what is returned must live until they are used."""
        table, mine = self._table, self._mine
        told = {k: torch.stack([e.told[k] for e in mine]) for k in mine[0].told}
        net, numbers = _net(rule, mine), rule.numbers(told, common)
        assert net is not None
        kept = _checked(net, numbers, len(mine))
        for name, array in kept.items():
            stride = array.stride(0) * array.element_size() * (len(array) > 1)
            table[name] = array.data_ptr() + stride * np.arange(len(mine))
        table["scale"] = numbers.scale.numpy() * self._factors
        if net.bounds is not None:
            between = np.array([net.bounds.of(e.shape, e.matrix) for e in mine])
            table["least"], table["most"] = between.T
        return list(kept.values())


def _threads() -> Any:
    return ctypes.byref(ctypes.c_int(torch.get_num_threads()))


def _net(rule: Rule, entries: Sequence[Entry]) -> ElementNet | None:
    return rule.element_net(entries[0].role) if entries else None


def _checked(net: ElementNet, numbers: Numbers, count: int) -> dict[str, Tensor]:
    """The arrays the core reads, [R, ...] contiguous, R one or the number of tensors.

    Raises `AssertionError` where a rule's numbers are not what its network says: the
    core reads as much as that.
    """
    shapes, found = net.shapes(), {}
    for name in ARRAYS:
        array = numbers.network[name].to("cpu", torch.float32).contiguous()
        each, wanted = array.shape[1:], shapes[name]
        fits = each[1:] == wanted[1:] and each[0] >= wanted[0]
        assert fits and len(array) in (1, count), (name, tuple(array.shape), wanted)
        found[name] = array
    momenta, second, factored = numbers.decays
    decays = torch.cat([momenta, factored, second]).to("cpu", torch.float32)
    assert decays.shape == (2 * len(momenta) + 1,) == (7,), decays.shape
    return {**found, "decays": decays.unsqueeze(0)}


def _arrays(e: Entry) -> list[tuple[Tensor, bool]]:
    return [(e.grad, False), (e.param, True), *((x, True) for x in e.state.values())]


def _extent(array: tuple[Tensor, bool]) -> tuple[int, int, bool]:
    """Address, bytes from its first to its last element, and whether it is written."""
    x, written = array
    reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    return x.data_ptr(), reach * x.element_size() if x.numel() else 0, written


def _moment_sizes(table: Any) -> tuple[Any, Any]:
    """Elements of the row and column moments; of a vector's only one, as both."""
    over_x = 3 * table["n"] // np.maximum(table["x"], 1)
    over_y = 3 * table["n"] // np.maximum(table["y"], 1)
    rows = np.where(table["row_over_x"], over_x, over_y)
    cols = np.where(table["row_over_x"], over_y, over_x)
    vector = table["vector"] != 0
    return np.where(vector, 3 * table["n"], rows), np.where(vector, 0, cols)
