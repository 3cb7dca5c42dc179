"""Whose memory is it, and is it there? Checks of tensors before a step uses them.

Between two steps a program may replace anything: `param.data`, a gradient, an array of
the state. Kernels work on addresses, so everything is looked at in every step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopax._core.errors import StructureMismatch
from lopax.torch import sharding
from lopax.torch.errors import UnsupportedParameter


@functools.cache
def _ordinary(kind: type) -> bool:
    """Whether tensors of this type are their memory, and not something around it."""
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def has_memory(x: Tensor) -> bool:
    """Whether the storage holds every element; True for what is no ordinary tensor."""
    if not _ordinary(type(x)):
        return True
    if x.is_contiguous():
        last = x.storage_offset() + x.numel()
    else:
        reach = zip(x.shape, x.stride(), strict=True)
        last = x.storage_offset() + 1 + sum((n - 1) * s for n, s in reach)
    return x.untyped_storage().nbytes() >= last * x.itemsize or not x.numel()


class Known:
    """Arrays of one parameter's state that were checked, and a quick way to see that
    they are still what they were: the same objects at the same addresses."""

    def __init__(self) -> None:
        self.arrays: dict[str, Tensor] = {}
        self._device: torch.device | None = None
        self._rows: list[tuple[str, Tensor, torch.Size, int, Any, torch.dtype]] = []

    def keep(self, arrays: dict[str, Tensor], device: torch.device) -> None:
        """Of arrays whose addresses kernels may have."""
        self.arrays, self._device = arrays, device
        self._rows = [
            (name, x, x.shape, x.data_ptr(), _reach(x), x.dtype)
            for name, x in arrays.items()
        ]

    def holds(self, state: Mapping[str, Any], device: torch.device) -> bool:
        """Whether `state` still has these arrays."""
        if device != self._device:
            return False
        for name, x, shape, place, size, dtype in self._rows:
            if (
                state.get(name) is not x
                or x.data_ptr() != place
                or x.shape != shape
                or x.dtype is not dtype
                or not x.is_contiguous()
                or x.untyped_storage().nbytes() < size
            ):
                return False
        return True


def _reach(x: Tensor) -> Any:
    """The bytes a storage must have for a contiguous tensor."""
    return x.itemsize * (x.storage_offset() + x.numel())


def is_plain_array(
    x: Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether a kernel may be given the address of `x` as an array [*shape]."""
    return (
        x.dtype is dtype
        and x.shape == shape
        and x.is_contiguous()
        and x.device == device
        and not x.is_neg()
        and x.untyped_storage().nbytes() >= _reach(x)
        and _ordinary(type(x))
    )


def _is_whole(x: Tensor) -> bool:
    """The quick answer for nearly all tensors: contiguous, and nothing is missing."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_contiguous()
        and not x.is_meta
        and x.untyped_storage().nbytes() >= x.nbytes + x.storage_offset() * x.itemsize
    )


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of `x` may be one number in memory (expanded tensors)."""
    if x.is_contiguous():
        return False
    reach = 1
    axes = [(s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n > 1]
    for stride, size in sorted(axes):
        if stride < reach:
            return True
        reach += (size - 1) * stride
    return False


def check_operands(param: Tensor, grad: Tensor, what: str) -> bool:
    """Whether kernels may address what is local of a parameter and its gradient.

    Raises `StructureMismatch` if the two do not belong together, and
    `UnsupportedParameter` if an update cannot be written.
    """
    if (
        grad.shape == param.shape
        and grad.device == param.device
        and _is_whole(param)
        and _is_whole(grad)
    ):
        return True
    if grad.shape != param.shape or grad.device != param.device:
        raise StructureMismatch.between(
            f"the gradient of {what}",
            {"shape": list(param.shape), "device": str(param.device)},
            {"shape": list(grad.shape), "device": str(grad.device)},
            "Was param.data replaced? Set param.grad = None, and compute it again.",
        )
    for x, name in ((param, what), (grad, f"the gradient of {what}")):
        if x.is_meta or not has_memory(x):
            raise UnsupportedParameter(
                f"{name} of shape {list(x.shape)} has no memory: its storage was freed "
                "(untyped_storage().resize_), or it is on the device 'meta'. Give it "
                "memory before step()."
            )
    if overlaps_itself(param):
        raise UnsupportedParameter(
            f"{what} of shape {list(param.shape)} has several elements in one place in "
            f"memory (strides {param.stride()}, as expand() makes them), which cannot "
            "get updates of their own: use param.data = param.data.clone()"
        )
    return _ordinary(type(param)) and _ordinary(type(grad))


def described(dtype: torch.dtype, shape: Any) -> str:
    """What `describe` says of an ordinary tensor."""
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def describe(x: object) -> str:
    """A tensor as an error message shows it."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    text = described(x.dtype, x.shape)
    if sharding.is_dtensor(x):
        return sharding.spread(text, x.placements)  # type: ignore[attr-defined]
    if x.layout != torch.strided:
        return f"{text} {x.layout}"
    if x.is_meta or not has_memory(x):
        return f"{text} without memory"
    return text


def share_memory(starts: Any, sizes: Any, written: Any) -> bool:
    """Whether an array that is written to shares memory with another one, or an array
    does not begin where a number of four bytes may.

    **Arguments:**

    - `starts`, `sizes`: [N] int64, addresses and numbers of bytes.
    - `written`: [N] bool; what is only read may be shared.
    """
    if (starts & 3).any():
        return True
    order = np.argsort(starts, kind="stable")
    order = order[sizes[order] > 0]
    starts, ends, written = starts[order], (starts + sizes)[order], written[order]
    before = np.maximum.accumulate(ends)[:-1]
    before_written = np.maximum.accumulate(np.where(written, ends, 0))[:-1]
    clash = (starts[1:] < before_written) | (written[1:] & (starts[1:] < before))
    return bool(clash.any())
