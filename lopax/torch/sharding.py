"""Parameters spread over processes: what is sharded, and completing partial sums.

A `DTensor` (FSDP2's `fully_shard`, `distribute_tensor`) holds one shard per process.
A rule runs on the shard; the sums over a whole tensor that it asks for are all-reduced
here, those of all tensors in one message.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lopax.torch.batch import Steps, Sum
from lopax.torch.errors import UnsupportedParameter
from lopax.torch.geometry import Accumulator


class Sharding(NamedTuple):
    """How one tensor is cut: along `axis`, over the processes of `group`."""

    axis: int
    group: Any


@functools.cache
def _dtensor() -> Any:
    """`torch.distributed.tensor`, or None where torch was built without it."""
    if not dist.is_available():
        return None
    import torch.distributed.tensor as module

    return module


def is_dtensor(x: Any) -> bool:
    # A plain tensor costs one type comparison here, not an import.
    if type(x) in (Tensor, torch.nn.Parameter):
        return False
    module = _dtensor()
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """This process's part, sharing memory with `x`."""
    return x.to_local() if is_dtensor(x) else x  # type: ignore[attr-defined]


def sharding_of(param: Tensor, same_axes: bool = True) -> Sharding | None:
    """How `param` is sharded; None if every process has all of it.

    Raises `UnsupportedParameter` for anything but one sharded mesh dimension, and for
    an axis other than the first if the rule does not see the axes as they are.
    """
    if not is_dtensor(param):
        return None
    module = _dtensor()
    mesh, found = param.device_mesh, []  # type: ignore[attr-defined]
    for dim, placement in enumerate(param.placements):  # type: ignore[attr-defined]
        if type(placement) is module.Shard:
            found.append(Sharding(placement.dim % max(param.ndim, 1), (mesh, dim)))
        elif type(placement) is not module.Replicate:
            raise UnsupportedParameter(
                f"a parameter of shape {tuple(param.shape)} has the placement "
                f"{placement}: only Shard and Replicate are supported. Shard with "
                "fully_shard (FSDP2) over a mesh without tensor parallelism."
            )
    if len(found) > 1:
        raise UnsupportedParameter(
            f"a parameter of shape {tuple(param.shape)} is sharded over "
            f"{len(found)} mesh dimensions: one is supported. Use FSDP2 alone, or "
            "together with replication (HSDP)."
        )
    if not found:
        return None
    axis, (mesh, dim) = found[0]
    if axis and not same_axes:
        raise UnsupportedParameter(
            f"a parameter of shape {tuple(param.shape)} is sharded along axis {axis}, "
            "and the rule sees its last axes as one: shard along axis 0, or use "
            'convolutions="slices"'
        )
    return Sharding(axis, mesh.get_group(dim))


def refuse_flattened(param: Tensor) -> None:
    """Raises for parameters that lost their shape to an older sharding scheme."""
    if hasattr(param, "_is_flat_param") or getattr(param, "_fsdp_flattened", False):
        raise UnsupportedParameter(
            "FullyShardedDataParallel (FSDP1) flattens parameters, and the rule needs "
            "their shapes. Use torch.distributed.fsdp.fully_shard (FSDP2)."
        )
    if hasattr(param, "ds_id"):
        raise UnsupportedParameter(
            "DeepSpeed ZeRO-3 partitions parameters without their shapes, and the rule "
            "needs those. Use torch.distributed.fsdp.fully_shard (FSDP2)."
        )


def match_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """`grad` with the placement of `param`."""
    if is_dtensor(param) and is_dtensor(grad):
        mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
        if grad.placements != placements:  # type: ignore[attr-defined]
            return grad.redistribute(mesh, placements)  # type: ignore[attr-defined]
    return grad


def start_for(
    param: Tensor, shape: tuple[int, ...], part: tuple[int, ...], spec: Accumulator
) -> Tensor:
    """The first values of one array of a parameter's state, sharded as the
    parameter; `shape` of the whole and `part` of what is local as the rule sees them.
    """
    device = local(param).device
    zeros = torch.zeros(spec.shape(part), dtype=spec.dtype, device=device)
    if spec.start is not None:
        zeros += spec.start.to(device)
    if not is_dtensor(param):
        return zeros
    return spread_as(zeros, param, spec, spec.shape(shape))


def spread_as(
    local: Tensor, param: Tensor, spec: Accumulator, whole: tuple[int, ...]
) -> Tensor:
    """An array of shape `whole` of a parameter's state, from what is local of it,
    spread as the parameter, a `DTensor`, is."""
    return _dtensor().DTensor.from_local(
        local,
        param.device_mesh,  # type: ignore[attr-defined]
        placements_for(param, spec),
        run_check=False,
        shape=torch.Size(whole),
        stride=torch.empty(whole, dtype=torch.float32, device="meta").stride(),
    )


def placements_for(param: Tensor, spec: Accumulator) -> tuple[Any, ...] | None:
    """How one array of a parameter's state lies over the processes; None if the
    parameter is no `DTensor`."""
    if not is_dtensor(param):
        return None
    module, placements = _dtensor(), []
    for placement in param.placements:  # type: ignore[attr-defined]
        if type(placement) is module.Shard and placement.dim in spec.axes:
            axis = spec.axes.index(placement.dim) + bool(spec.copies)
            placements.append(module.Shard(axis))
        else:
            placements.append(module.Replicate())
    return tuple(placements)


def spread(text: str, placements: Any) -> str:
    """A description of a tensor, with how it lies over the processes."""
    if placements is None:
        return text
    return f"{text} over processes as ({', '.join(map(str, placements))})"


def any_shard(flag: Tensor, shardings: Iterable[Sharding | None]) -> Tensor:
    """Whether `flag` [] is set on any process that holds a part of these tensors."""
    for group in dict.fromkeys(s.group for s in shardings if s is not None):
        message = flag.float()
        dist.all_reduce(message, group=group)
        flag = message > 0
    return flag


def complete_together(
    rules: Sequence[Steps], shardings: Sequence[Sharding | None]
) -> list[Tensor]:
    """Runs rules side by side, one all-reduce (per process group) each time they
    ask for sums. All processes must call it with the same tensors in the same order.
    """
    results: list[Tensor | None] = [None] * len(rules)
    asked: dict[int, list[Sum]] = {}

    def resume(i: int, sums: list[Tensor] | None) -> None:
        try:
            asked[i] = next(rules[i]) if sums is None else rules[i].send(sums)
        except StopIteration as done:
            results[i] = done.value

    for i in range(len(rules)):
        resume(i, None)
    while asked:
        waiting, asked = asked, {}
        values = {i: [s.value for s in sums] for i, sums in waiting.items()}
        by_group: dict[Any, list[Tensor]] = {}
        for i, sums in waiting.items():
            sharding = shardings[i]
            for j, s in enumerate(sums):
                if sharding is not None and sharding.axis in s.axes:
                    values[i][j] = s.value.contiguous()
                    by_group.setdefault(sharding.group, []).append(values[i][j])
        for group, parts in by_group.items():
            flat = torch.cat([p.flatten() for p in parts])
            dist.all_reduce(flat, group=group)
            pieces = flat.split([p.numel() for p in parts])
            for part, piece in zip(parts, pieces, strict=True):
                part.copy_(piece.view_as(part))
        for i in waiting:
            resume(i, values[i])
    return [r for r in results if r is not None]
