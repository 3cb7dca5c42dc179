"""The plain backend: torch operations only, on every device, sharded or not.

Small tensors of one shape are stacked and treated as one, so that a network with a
hundred of them does not cost a hundred times the launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax.torch.rule import Rule, TensorBatch, complete
from lopax.torch.sharding import Sharding, complete_together

_foreach_norm: Any = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
_foreach_copy: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

# Stacking copies the state in and out, which pays only where launches dominate.
STACK_TENSOR, STACK_TOTAL = 1 << 16, 1 << 18


class Entry(NamedTuple):
    """One parameter that has a gradient in this step; tensors are local shards."""

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    shape: tuple[int, ...]  # of the whole parameter; scalars are (1,)
    axes: tuple[int, int] | None
    lr: float | Tensor
    weight_decay: float
    group: int
    sharding: Sharding | None


class PlainBackend:
    """Steps one device's entries."""

    name = "plain"

    def begin(self, rule: Rule, entries: Sequence[Entry]) -> Tensor:
        """[] bool: some gradient is not finite. Nothing is changed."""
        del rule
        grads = [e.grad for e in entries if e.grad.numel()]
        if not grads:
            return torch.zeros((), dtype=torch.bool, device=entries[0].param.device)
        largest = _foreach_norm(grads, float("inf"))
        return ~torch.stack([n.float() for n in largest]).isfinite().all()

    def finish(
        self, rule: Rule, entries: Sequence[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        """Updates parameters and states in place."""
        groups = _grouped(entries)
        if any(e.sharding is not None for e in entries):
            batches = [_batch(rule, group) for group in groups]
            steps = [rule.step(b, scale, alive) for b in batches]
            updates = complete_together(steps, [g[0].sharding for g in groups])
            for group, batch, update in zip(groups, batches, updates, strict=True):
                _commit(group, batch, update, scale * alive)
            return
        for group in groups:
            batch = _batch(rule, group)
            update = complete(rule.step(batch, scale, alive))
            _commit(group, batch, update, scale * alive)


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that can be stacked, together; the order is that of the entries."""
    groups: dict[Any, list[list[Entry]]] = {}
    ordered: list[list[Entry]] = []
    for e in entries:
        key = (e.group, e.shape, e.axes, e.param.shape, e.param.dtype, e.grad.dtype)
        key = (*key, e.sharding)
        open_groups = groups.setdefault(key, [])
        size = math.prod(e.shape)  # of the whole: all processes must group alike
        room = open_groups and (len(open_groups[-1]) + 1) * size <= STACK_TOTAL
        if size <= STACK_TENSOR and room:
            open_groups[-1].append(e)
        else:
            open_groups.append([e])
            ordered.append(open_groups[-1])
    return ordered


def _batch(rule: Rule, group: Sequence[Entry]) -> TensorBatch:
    first = group[0]
    if len(group) == 1:
        grads, params = first.grad.unsqueeze(0), first.param.unsqueeze(0)
        state = {k: v.unsqueeze(0) for k, v in first.state.items()}
    else:
        grads = torch.stack([e.grad for e in group])
        params = torch.stack([e.param for e in group])
        state = {k: torch.stack([e.state[k] for e in group]) for k in first.state}
    shape = (len(group), *(tuple(first.param.shape) or (1,)))
    clip = rule.grad_clip
    # A new tensor in any case, which the rule may write to.
    grads = torch.nan_to_num(grads.float(), nan=0.0, posinf=clip, neginf=-clip)
    return TensorBatch(
        grads=grads.clamp_(-clip, clip).reshape(shape).contiguous(),
        params=params.float().reshape(shape),
        state=state,
        shape=first.shape,
        axes=first.axes,
    )


def _commit(
    group: Sequence[Entry], batch: TensorBatch, update: Tensor, rate: Tensor
) -> None:
    """Writes states back, then parameters: p + lr (update - rate * decay * p)."""
    first = group[0]
    if len(group) > 1:
        for name, stacked in batch.state.items():
            _foreach_copy([e.state[name] for e in group], stacked.unbind(0))
    if first.weight_decay:
        update.addcmul_(batch.params, rate, value=-first.weight_decay)
    if isinstance(first.lr, Tensor) or first.lr != 1.0:
        update *= first.lr
    shape = first.param.shape
    for e, u in zip(group, update.unbind(0), strict=True):
        e.param.add_(u.reshape(shape))
