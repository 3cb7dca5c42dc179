"""The plain backend: torch operations only, on every device, sharded or not.

Small tensors of one shape are stacked and treated as one, so that a network with a
hundred of them does not cost a hundred times the launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax.rules.form import Place
from lopax.torch import finite
from lopax.torch.batch import NOTHING, Common, Steps, TensorBatch, complete
from lopax.torch.rule import Rule
from lopax.torch.sharding import Sharding, complete_together

_foreach_copy: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

# Stacking copies the state in and out, which pays only where launches dominate; what
# only reads a tensor, or its corner, gains nothing else.
STACK_TENSOR, STACK_TOTAL, STACK_READ = 1 << 16, 1 << 18, 1 << 12
PART = 1 << 18
"""Elements of a large tensor that are stepped at a time, where its rule allows that."""


class Entry(NamedTuple):
    """One parameter that has a gradient in this step; tensors are local shards."""

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    place: Place  # of the whole parameter, as the rule sees it
    part: tuple[int, ...]  # the shape of `param` and `grad`, likewise
    sharding: Sharding | None
    lr: float | Tensor = 1.0
    weight_decay: float = 0.0
    group: int = 0
    told: Mapping[str, Tensor] = NOTHING  # what the rule's `advance` told this tensor
    row: int = 0  # in a list of entries
    addressable: bool = True  # a kernel may be given the addresses of all its arrays
    within: bool = False  # surely no element of the gradient is beyond the rule's bound


class PlainBackend:
    """Steps one device's entries. `why`: not by a kernel, for reports."""

    name = "plain"

    def __init__(self, why: str = ""):
        self._why = why

    def describe(self) -> str:
        return f"plain: {self._why}" if self._why else "plain"

    def begin(self, rule: Rule, entries: Sequence[Entry]) -> finite.Look:
        """Whether some gradient is not finite, and whether all are within the rule's
        bound. Nothing is changed."""
        grads = [e.grad for e in entries if e.grad.numel()]
        if grads:
            return finite.look(grads, rule.grad_clip)
        device = entries[0].param.device
        return finite.Look(torch.zeros((), dtype=torch.bool, device=device), True)

    def finish(
        self, rule: Rule, entries: Sequence[Entry], common: Common, alive: Tensor
    ) -> Tensor:
        """Updates parameters and states in place.

        Returns [] bool: somewhere the step was not finite. There, parameters stay.
        """
        if finite.can_ask(alive) and not alive:
            return torch.zeros((), dtype=torch.bool, device=alive.device)
        groups, rate = grouped(entries), common.scale * alive
        held: list[Tensor] = []

        def write(batch: TensorBatch, members: list[Entry], update: Tensor) -> None:
            held.append(commit(members, batch, update, rate))

        if any(e.sharding is not None for e in entries):
            batches = [_batch(rule, members) for members in groups]
            steps = [rule.step(b, common, alive) for b in batches]
            updates = complete_together(steps, [m[0].sharding for m in groups])
            for batch, members, update in zip(batches, groups, updates, strict=True):
                write(batch, members, update)
            return torch.stack(held).any()
        for members in groups:  # one at a time: what a step needs is freed after it
            for part in parts(rule, members):
                batch = _batch(rule, part)
                write(batch, part, complete(rule.step(batch, common, alive)))
        return torch.stack(held).any()


def summaries(
    rule: Rule, entries: Sequence[Entry], shared: Mapping[str, Tensor]
) -> list[Tensor]:
    """What the rule's `summarise` says of each entry, [F] each."""

    def start(members: Sequence[Entry]) -> Steps:
        return rule.summarise(_batch(rule, members, rule.sees_gradients), shared)

    return _row_by_row(start, entries)


def measurements(rule: Rule, entries: Sequence[Entry]) -> list[Tensor]:
    """What the rule's `measure` says of each entry's first values, [S] each."""
    return _row_by_row(lambda m: rule.measure(_batch(rule, m, False)), entries)


def _row_by_row(
    start: Callable[[list[Entry]], Steps], entries: Sequence[Entry]
) -> list[Tensor]:
    """A row of numbers for each entry, from one for each batch of them."""
    every = [e._replace(row=i) for i, e in enumerate(entries)]
    on_cpu = every and every[0].param.device.type == "cpu"
    groups = grouped(every, STACK_READ if on_cpu else STACK_TENSOR)
    shardings = [members[0].sharding for members in groups]
    if any(s is not None for s in shardings):
        steps = [start(members) for members in groups]
        found = complete_together(steps, shardings)
    else:  # one at a time: what each needs is freed after it
        found = [complete(start(members)) for members in groups]
    rows: list[Tensor | None] = [None] * len(entries)
    for members, part in zip(groups, found, strict=True):
        for e, row in zip(members, part.unbind(0), strict=True):
            rows[e.row] = row
    return [r for r in rows if r is not None]


def grouped(entries: Sequence[Entry], most: int = STACK_TENSOR) -> list[list[Entry]]:
    """Entries of at most so many elements that can be stacked, together; the order is
    that of the entries."""
    groups: dict[Any, list[list[Entry]]] = {}
    ordered: list[list[Entry]] = []
    for e in entries:
        dtypes = e.param.dtype, e.grad.dtype
        key = (e.group, e.place, e.param.shape, *dtypes, e.sharding)
        open_groups = groups.setdefault(key, [])
        size = math.prod(e.place.shape)  # of the whole: all processes must group alike
        room = open_groups and (len(open_groups[-1]) + 1) * size <= STACK_TOTAL
        if size <= most and room:
            open_groups[-1].append(e)
        else:
            open_groups.append([e])
            ordered.append(open_groups[-1])
    return ordered


def parts(rule: Rule, members: list[Entry]) -> Iterator[list[Entry]]:
    """A large tensor on a CPU in parts, where its rule allows that; others as they are.

    What a tensor has one of (counts) is moved with the first part; for the others there
    are copies of what it was.
    """
    e, size = members[0], members[0].param.numel()
    once = {k: x for k, x in e.state.items() if x.numel() < size}
    many = {k: x for k, x in e.state.items() if k not in once}
    splits = (
        e.place.role in rule.elementwise and size > 2 * PART and finite.can_ask(e.param)
    )
    for x in (e.param, e.grad, *many.values()):  # there may be several of each element
        splits = splits and x.numel() % size == 0 and x.is_contiguous()
    if not splits:
        yield members
        return
    spare = {k: x.clone() for k, x in once.items()}
    for at in range(0, size, PART):
        here = slice(at, at + PART)
        lead = {k: x.shape[: x.ndim - len(e.part)] for k, x in many.items()}
        states = {k: x.view(*lead[k], size)[..., here] for k, x in many.items()}
        counts = {k: x.clone() for k, x in spare.items()} if at else once
        param, grad = e.param.view(size)[here], e.grad.view(size)[here]
        shape = (len(param),)
        place = e.place._replace(shape=shape, reading=(0,))
        found = e._replace(param=param, grad=grad, state=counts | states)
        yield [found._replace(place=place, part=shape)]


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """[B, ...]; of one tensor a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack([*tensors])


def _params(members: Sequence[Entry]) -> Tensor:
    stacked = _stack([e.param for e in members]).float()
    return stacked.reshape(len(members), *members[0].part)


def _states(rule: Rule, members: Sequence[Entry]) -> dict[str, Tensor]:
    """What the rule's `step` updates."""
    names = [k for k in members[0].state if k not in rule.carried]
    return {k: _stack([e.state[k] for e in members]) for k in names}


def _gradients(rule: Rule, members: Sequence[Entry]) -> Tensor:
    """Finite and clipped, and if an element network steps them a new tensor in any
    case, which it writes to."""
    clip, stacked = rule.grad_clip, _stack([e.grad for e in members]).float()
    if finite.can_ask(stacked):  # and a step with others is not done
        written = rule.element_net(members[0].place.role) is not None
        if not written and members[0].within:
            return stacked
        return stacked.clamp(-clip, clip)
    grads = torch.nan_to_num(stacked, nan=0.0, posinf=clip, neginf=-clip)
    return grads.clamp_(-clip, clip)


def _batch(
    rule: Rule, members: Sequence[Entry], with_gradients: bool = True
) -> TensorBatch:
    params = _params(members)
    grads = _gradients(rule, members) if with_gradients else params
    grads = grads.reshape(params.shape).contiguous()
    return _as_batch(members, grads, params, _states(rule, members))


def batch_of(
    rule: Rule, members: Sequence[Entry], elements: Tensor, unreached: bool
) -> TensorBatch:
    """A batch of which a kernel has computed the network's step [B, *s], and stepped
    the accumulators. `unreached`: whether the rule has to look for elements that never
    saw a gradient."""
    state = _states(rule, members) if unreached else {}
    found = _as_batch(members, elements, _params(members), state)
    return found._replace(elements=elements)


def _as_batch(
    members: Sequence[Entry],
    grads: Tensor,
    params: Tensor,
    state: dict[str, Tensor],
) -> TensorBatch:
    first = members[0]
    return TensorBatch(
        grads=grads,
        params=params,
        state=state,
        place=first.place,
        told={k: _stack([e.told[k] for e in members]) for k in first.told},
    )


def commit(
    members: Sequence[Entry], batch: TensorBatch, update: Tensor, rate: Tensor
) -> Tensor:
    """Writes states back, then parameters: p + lr (update - rate * decay * p).

    Returns [] bool: some elements of the update were not finite, and were left out.
    """
    first = members[0]
    if len(members) > 1:
        for name, stacked in batch.state.items():
            _foreach_copy([e.state[name] for e in members], stacked.unbind(0))
    if first.weight_decay:
        update.addcmul_(batch.params, rate, value=-first.weight_decay)
    if isinstance(first.lr, Tensor) or first.lr != 1.0:
        update *= first.lr
    held = finite.some_not_finite(update)
    if not finite.can_ask(held) or held:
        update.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    shape = first.param.shape
    for e, u in zip(members, update.unbind(0), strict=True):
        add(e.param, u.reshape(shape))
    return held


def add(param: Tensor, update: Tensor) -> None:
    """Adds a finite update; what would leave the parameter's dtype stays."""
    if param.dtype == torch.float16:  # the others reach as far as an update does
        update = update.where((param + update).to(param.dtype).isfinite(), 0.0)
    param.add_(update)
