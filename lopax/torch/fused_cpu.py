"""Fused kernels for the CPU: `celo_cpu.c`, compiled on first use.

Where the compiled library is kept, and when it is trusted: `lopax._core.native_build`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax._core import native_build
from lopax._core.native_build import NativeUnavailable
from lopax.rules import channels
from lopax.rules.channels import ELEMENT, GROUPS, VELO
from lopax.rules.element_net import ElementNet, Numbers
from lopax.torch.elements import ElementRule
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

SOURCE, *HEADERS = (
    Path(__file__).with_name(name)
    for name in ("celo_cpu.c", "celo_cpu.h", "celo_cpu_view.h")
)
BAND = 1 << 15
"""Elements in a unit of work, about."""

_POINTERS = ("param", "momenta", "second", "row", "col", "grad", "scratch", "rule")
_GEOMETRY = ("n", "a", "x", "b", "y", "c", "band", "items", "row_over_x", "vector")
_OPERANDS = ("grad", "param", "momenta", "second", "row", "col")
_WRITTEN = np.array([[False], [True], [True], [True], [True], [True]])
_TENSOR = np.dtype(
    [
        *((name, np.uintp) for name in _POINTERS),
        *((name, np.int64) for name in (*_GEOMETRY, "update_only", "relative")),
        *((name, np.float32) for name in ("lr", "decay", "limit", "scale")),
        *((name, np.float32) for name in ("least", "most")),
    ],
    align=True,
)


def create(rule: Rule) -> FusedCPU:
    """The backend for a rule.

    Raises `BackendUnavailable` if there is no kernel for it, or none can be built.
    """
    if not isinstance(rule, ElementRule):
        raise BackendUnavailable(
            f"there is no fused CPU kernel for {rule.name!r}; use backend='plain'"
        )
    return FusedCPU(library(rule.config.hidden))


def library(hidden: int) -> Any:
    """The kernels for MLPs of this width; built or taken from the cache.

    Raises `BackendUnavailable` where there is no C compiler, or it fails, or
    `LOPAX_KERNELS=off`.
    """
    try:
        command = native_build.compiler("CC", ("cc", "gcc"))
        loaded = native_build.load(
            native_build.Source(
                name="celo_cpu",
                files=(SOURCE, *HEADERS),
                command=(*command, *_options(), f"-DHIDDEN={hidden}"),
                libraries=("-lm",),
                symbols=("scratch_floats", "celo_begin", "celo_finish"),
            )
        )
    except NativeUnavailable as error:
        raise BackendUnavailable(
            f"the fused CPU kernels cannot be had: {error}. Use backend='plain'.",
            expected=error.expected,
        ) from None
    tensors, count = ctypes.c_void_p, ctypes.c_int64
    loaded.scratch_floats.argtypes = [tensors]
    loaded.scratch_floats.restype = ctypes.c_int64
    loaded.celo_begin.argtypes = [tensors, count, ctypes.c_int]
    loaded.celo_begin.restype = ctypes.c_int
    loaded.celo_finish.argtypes = [tensors, count, ctypes.c_float, ctypes.c_int]
    loaded.celo_finish.restype = None
    return loaded


def _options() -> list[str]:
    """Compiler options; the instruction set is the one torch found on this machine,
    so that a cache folder shared between machines is safe."""
    vector = {
        "AVX2": ["-mavx2", "-mfma"],
        "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    }.get(torch.backends.cpu.get_cpu_capability(), [])
    # Not -ffast-math: the order of sums is part of the result.
    relaxed = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]
    common = ["-std=c11", "-O3", "-ffp-contract=fast", "-fopenmp-simd", "-fPIC"]
    return [*common, *relaxed, *vector, "-shared", "-pthread"]


class FusedCPU:
    """Steps all entries of a rule in two calls; see `backends.Backend`."""

    name = "fused"

    def __init__(self, kernels: Any):
        self._kernels = kernels
        self._key: Any = None
        self._table = np.zeros(0, _TENSOR)
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")
        self._operands: list[Operand] = []
        self._addresses = self._sizes = np.zeros((6, 0), np.int64)
        self._shared = False  # some tensors lie in the same memory
        self._plain = PlainBackend()

    @outside_graphs
    def begin(self, rule: Rule, entries: Sequence[Entry]) -> Tensor:
        key = tuple((e.shape, e.axes) for e in entries)
        if key != self._key:
            self._lay_out(key)
        self._point(entries)
        if self._shared:  # threads would write to one place
            return self._plain.begin(rule, entries)
        self._table["limit"] = rule.grad_clip
        bad = self._kernels.celo_begin(*self._tensors(), torch.get_num_threads())
        return torch.tensor(bool(bad), dtype=torch.bool, device="cpu")

    @outside_graphs
    def finish(
        self, rule: Rule, entries: Sequence[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        if self._shared:
            self._plain.finish(rule, entries, scale, alive)
        elif alive.item():  # on the CPU nothing has to be waited for
            assert isinstance(rule, ElementRule)
            told = {
                k: torch.stack([e.context[k] for e in entries])
                for k in entries[0].context
            }
            net, numbers = rule.net, rule.numbers(told, scale)
            packed = _packed(net, numbers)
            # One network for each tensor, or one for all.
            stride = packed.stride(0) * packed.element_size() * (len(packed) > 1)
            self._table["rule"] = packed.data_ptr() + stride * np.arange(len(entries))
            self._table["scale"] = -numbers.scale.numpy()
            self._table["relative"] = net.bounds is not None
            if net.bounds is not None:
                between = np.array([net.bounds.of(e.shape, e.matrix) for e in entries])
                self._table["least"], self._table["most"] = between.T
            self._kernels.celo_finish(
                *self._tensors(), scale.item(), torch.get_num_threads()
            )
            add_updates(entries, self._operands)
        self._operands = []

    def _tensors(self) -> tuple[int, int]:
        return self._table.ctypes.data, len(self._table)

    def _lay_out(self, key: Sequence[Any]) -> None:
        """Geometry and scratch memory, which hold as long as the shapes do."""
        table = np.zeros(len(key), _TENSOR)
        for row, (shape, axes) in zip(table, key, strict=True):
            blocks = Blocks.of(shape, axes)
            size = int(np.prod(shape))
            slice_size = max(1, blocks.b * blocks.y * blocks.c)
            # At least 8 slices to a band: partial sums over X stay small.
            least = 8 if axes is not None else 1
            band = max(least, -(-BAND // slice_size))
            items = blocks.a * -(-blocks.x // band) if size else 0
            for name in ("a", "x", "b", "y", "c", "row_over_x"):
                row[name] = getattr(blocks, name)
            row["n"], row["band"], row["items"] = size, band, items
            row["vector"] = axes is None
        base = table.ctypes.data
        needs = [
            self._kernels.scratch_floats(base + i * _TENSOR.itemsize)
            for i in range(len(table))
        ]
        starts = np.concatenate([[0], np.cumsum(needs)])
        size = int(starts[-1])
        self._scratch = torch.empty(size, dtype=torch.float32, device="cpu")
        table["scratch"] = self._scratch.data_ptr() + 4 * starts[:-1]
        self._table, self._key = table, tuple(key)
        n, rows, cols = table["n"], *_moment_sizes(table)
        self._sizes = 4 * np.stack([n, n, 3 * n, n, rows, cols]).astype(np.int64)
        self._addresses = np.zeros_like(self._sizes)

    def _point(self, entries: Sequence[Entry]) -> None:
        """The step's pointers and settings."""
        table = self._table
        self._operands = operands(entries, (torch.float32,))
        table["param"] = [o.param.data_ptr() for o in self._operands]
        table["grad"] = [o.grad.data_ptr() for o in self._operands]
        table["update_only"] = [not o.direct for o in self._operands]
        for name, alternative in (
            ("momenta", "momenta"),
            ("second", "second"),
            ("row", "full"),
            ("col", "full"),
        ):
            table[name] = [
                (e.state[name] if name in e.state else e.state[alternative]).data_ptr()
                for e in entries
            ]
        table["lr"] = [float(e.lr) for e in entries]
        table["decay"] = [e.weight_decay for e in entries]
        addresses = np.stack([table[name] for name in _OPERANDS]).astype(np.int64)
        if not np.array_equal(addresses, self._addresses):
            written = np.broadcast_to(_WRITTEN, addresses.shape)
            self._shared = share_memory(
                addresses.ravel(), self._sizes.ravel(), written.ravel()
            )
            self._addresses = addresses


def _moment_sizes(table: Any) -> tuple[Any, Any]:
    """Elements of the row and column moments; of a vector's only one, as both."""
    over_x = 3 * table["n"] // np.maximum(table["x"], 1)
    over_y = 3 * table["n"] // np.maximum(table["y"], 1)
    rows = np.where(table["row_over_x"], over_x, over_y)
    cols = np.where(table["row_over_x"], over_y, over_x)
    vector = table["vector"] != 0
    return np.where(vector, 3 * table["n"], rows), np.where(vector, 0, cols)


def _packed(net: ElementNet, numbers: Numbers) -> Tensor:
    """The C struct `Rule` for each network [R, floats]."""
    arrays = numbers.network
    count = max(len(a) for a in arrays.values())
    whole = {k: a.expand(count, *a.shape[1:]) for k, a in arrays.items()}
    w0 = whole["w0"]

    def rows(names: Sequence[str]) -> Tensor:
        """First-layer weights of channels; zero for those the network has not."""
        parts = []
        for name in names:
            if name in net.channels:
                parts.append(w0[:, list(channels.places([name], net.channels))])
            else:
                parts.append(w0.new_zeros(count, GROUPS[name].width, w0.shape[2]))
        return torch.cat(parts, 1)

    row, col = rows(("row", "row_rsqrt")), rows(("col", "col_rsqrt"))
    momenta, second, factored = (1.0 - d for d in numbers.decays)
    more = w0.new_tensor([net.exp_mult, net.epsilons.vector])
    parts = [
        torch.cat([momenta, factored, second, more]).expand(count, -1),
        rows([name for name in VELO if GROUPS[name].over == ELEMENT]),
        whole["b0"],
        row,
        col,
        row + col,
        *(whole[name] for name in ("w1", "b1", "w2", "b2")),
    ]
    return torch.cat([p.flatten(1) for p in parts], 1).contiguous()
