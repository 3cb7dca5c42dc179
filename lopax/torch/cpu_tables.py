"""The table of tensors that the C core works on: where they are, and what to do."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax.native import tables
from lopax.native.blocks import Blocks
from lopax.rules.element_net import ARRAYS, ElementNet, Numbers
from lopax.torch.batch import Common
from lopax.torch.memory import share_memory
from lopax.torch.plain import Entry
from lopax.torch.rule import Rule
from lopax.torch.working_copies import Operand, operands

_OPERANDS = ("grad", "param", "momenta", "second", "row", "col")
_WRITTEN = np.array([[False], [True], [True], [True], [True], [True]])


class Table:
    """Rows for one list of tensors: geometry, which holds as long as the shapes do, and
    pointers and settings, which a step may change."""

    def __init__(self, core: Any, rule: Rule, entries: Sequence[Entry]):
        self._core = core
        self.rows = np.zeros(len(entries), tables.TENSOR)
        self.shared = False  # some tensors lie in the same memory
        self.operands: list[Operand] = []
        self._others: Any = ()
        for row, e in zip(self.rows, entries, strict=True):
            blocks = Blocks.of(e.place.shape, e.place.factored)
            for name in ("a", "x", "b", "y", "c", "row_over_x"):
                row[name] = getattr(blocks, name)
            row["vector"] = e.place.factored is None
        self._addresses = self._sizes = np.zeros((6, 0), np.int64)  # of the operands
        if not entries:
            return
        net = rule.element_net(entries[0].place.role)
        assert net is not None
        self._net = net
        self._factors = np.array([rule.factor(e.place) for e in entries])
        self._rules = np.concatenate(
            [tables.rule(net, rank, rule.grad_clip) for rank in (1, 2)]
        )
        where = np.where(self.rows["vector"] != 0, 0, self._rules.itemsize)
        self.rows["rule"] = self._rules.ctypes.data + where
        self._set_bands()

    def _set_bands(self) -> None:
        """How tensors are cut, and their scratch memory; depends on the rule's flags
        too."""
        rows, base = self.rows, self.rows.ctypes.data
        needs = [
            self._core.elements_prepare(base + i * tables.TENSOR.itemsize)
            for i in range(len(rows))
        ]
        starts = np.concatenate([[0], np.cumsum(needs)])
        size = int(starts[-1])
        self._scratch = torch.empty(size, dtype=torch.float32, device="cpu")
        rows["scratch"] = self._scratch.data_ptr() + 4 * starts[:-1]
        n, row, col = rows["n"], *_moment_sizes(rows)
        self._sizes = 4 * np.stack([n, n, 3 * n, n, row, col]).astype(np.int64)
        self._addresses = np.zeros_like(self._sizes)

    def point(
        self, rule: Rule, entries: Sequence[Entry], others: Sequence[Entry]
    ) -> None:
        """The step's pointers and settings. `others`: what the core does not step."""
        rows = self.rows
        self.operands = operands(entries, (torch.float32,))
        rows["param"] = [o.param.data_ptr() for o in self.operands]
        rows["grad"] = [o.grad.data_ptr() for o in self.operands]
        rows["out"] = rows["param"]
        rows["add"] = [o.direct for o in self.operands]
        for name, alternative in (
            ("momenta", "momenta"),
            ("second", "second"),
            ("row", "full"),
            ("col", "full"),
        ):
            rows[name] = [
                (e.state[name] if name in e.state else e.state[alternative]).data_ptr()
                for e in entries
            ]
        rows["lr"] = [float(e.lr) for e in entries]
        rows["decay"], rows["guard"] = [e.weight_decay for e in entries], 1
        if not rule.only_elements:  # the rule makes the update, from the bare step
            rows["add"], rows["guard"], rows["lr"], rows["decay"] = 0, 0, 1.0, 0.0
        addresses = np.stack([rows[name] for name in _OPERANDS]).astype(np.int64)
        extents = [_extent(x) for e in others for x in _arrays(e)]
        if extents != self._others or not np.array_equal(addresses, self._addresses):
            written = np.broadcast_to(_WRITTEN, addresses.shape)
            more = np.array(extents, np.int64).reshape(-1, 3)
            self.shared = share_memory(
                np.concatenate([addresses.ravel(), more[:, 0]]),
                np.concatenate([self._sizes.ravel(), more[:, 1]]),
                np.concatenate([written.ravel(), more[:, 2] != 0]),
            )
            self._addresses, self._others = addresses, extents

    def tell(
        self, rule: Rule, entries: Sequence[Entry], common: Common
    ) -> list[Tensor]:
        """The network's pointers; what is returned must live until they are used."""
        rows, net, count = self.rows, self._net, len(entries)
        told = {k: torch.stack([e.told[k] for e in entries]) for k in entries[0].told}
        numbers = rule.numbers(told, common)
        kept = _checked(net, numbers, count)
        for name, array in kept.items():
            stride = array.stride(0) * array.element_size() * (len(array) > 1)
            rows[name] = array.data_ptr() + stride * np.arange(count)
        rows["scale"] = numbers.scale.numpy() * self._factors
        if net.bounds is not None:
            places = [e.place for e in entries]
            between = [net.bounds.of(p.shape, p.matrix) for p in places]
            rows["least"], rows["most"] = np.array(between).T
        return list(kept.values())

    def begin(self) -> bool:
        """Whether a gradient is not finite."""
        first, count = self.rows.ctypes.data, len(self.rows)
        return self._core.elements_begin(first, count, None, _threads()) != 0

    def finish(self, first: int, count: int, decay: float) -> bool:
        """Steps some rows; whether a guarded result was not finite."""
        start = self.rows.ctypes.data + first * tables.TENSOR.itemsize
        found = self._core.elements_finish(start, count, decay, 1, None, _threads())
        return found != 0


def _threads() -> Any:
    return ctypes.byref(ctypes.c_int(torch.get_num_threads()))


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
