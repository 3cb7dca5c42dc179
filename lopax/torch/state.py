"""The optimizer's state: made, checked, restored from a state dict, moved.

What all tensors share is one set of tensors, referred to from every parameter's state
under names that begin with `shared_`. So a state dict has nothing beside per-parameter
state, and a tool that splits, renames or shards it keeps the shared part too.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from lopax._core.errors import StructureMismatch
from lopax._core.routing import Seen
from lopax.rules.form import Place
from lopax.torch import narrow, sharding
from lopax.torch.geometry import Accumulator
from lopax.torch.memory import (
    Known,
    describe,
    described,
    is_plain_array,
    overlaps_itself,
)
from lopax.torch.rule import Rule

SHARED = "shared_"
COUNTERS = ("num_steps", "iteration", "skipped")
State = dict[str, Tensor]


class Plan(NamedTuple):
    """What follows from a parameter's shape and its group: made once, used every
    step."""

    place: Place  # as the rule sees it
    part: tuple[int, ...]  # the shape of what is local, likewise
    what: str  # the parameter's name in messages
    specs: dict[str, Accumulator]  # of the parameter's own arrays
    parts: dict[str, tuple[int, ...]]  # the shapes of what is local of them
    known: Known  # what was checked in the last step
    seen: Seen  # how the tensors are made of the parameter
    row_axis: int = 0  # the axis that blocks of bytes do not cross

    @classmethod
    def of(
        cls,
        rule: Rule,
        place: Place,
        part: tuple[int, ...],
        what: str,
        seen: Seen,
        momentum_dtype: str = "float32",
        row_axis: int = 0,
    ) -> Plan:
        """`place`, `part`: as the rule sees them, of one tensor if it is a stack."""
        wide = rule.accumulators(place)
        kept = narrow.specs(wide, place.shape, momentum_dtype, row_axis)
        specs = {name: spec._replace(stack=seen.copies) for name, spec in kept.items()}
        return cls(
            place=place,
            part=part,
            what=what,
            specs=specs,
            parts={k: spec.shape(part) for k, spec in specs.items()},
            known=Known(),
            seen=seen,
            row_axis=row_axis,
        )


def init_shared(
    rule: Rule, num_steps: int, device: torch.device, starts: Tensor | None = None
) -> State:
    """Before the first step: counters, and what the rule shares between tensors."""

    def count(n: int) -> Tensor:
        return torch.tensor(n, dtype=torch.int32, device=device)

    return {
        "num_steps": count(num_steps),
        "iteration": count(0),
        "skipped": count(0),
        **rule.init_shared(num_steps, starts),
    }


def init_param(param: Tensor, plan: Plan, shared: State) -> State:
    """A parameter's state before its first step."""
    own = {
        name: sharding.start_for(param, plan.place.shape, plan.part, spec)
        for name, spec in plan.specs.items()
    }
    return own | refer(shared)


def refer(shared: State) -> State:
    """The entries by which a parameter's state refers to what is shared."""
    return {f"{SHARED}{name}": value for name, value in shared.items()}


def check(state: State, plan: Plan, device: torch.device) -> tuple[State, bool]:
    """What is local of a parameter's own arrays, and whether kernels may have their
    addresses. Arrays on another device than `device` are moved there, in `state` too.

    Raises `StructureMismatch` if they are not what the parameter needs: it or they
    were replaced since they were made.
    """
    if plan.known.holds(state, device):
        return plan.known.arrays, True
    arrays, addressable = {}, True
    for name, shape in plan.parts.items():
        whole = state.get(name)
        if not isinstance(whole, Tensor):
            _refuse(state, plan)
        x, dtype = sharding.local(whole), plan.specs[name].dtype
        if not is_plain_array(x, shape, device, dtype):
            if describe(x) != described(dtype, shape) or overlaps_itself(x):
                _refuse(state, plan)
            if x.device != device:
                state[name] = whole.to(device)
                x = sharding.local(state[name])
            addressable &= is_plain_array(x, shape, device, dtype)
        addressable &= x is state[name]  # not a shard
        arrays[name] = x
    if addressable:
        plan.known.keep(arrays, device)
    return arrays, addressable


def _refuse(state: State, plan: Plan) -> NoReturn:
    found = {}
    for name in plan.parts.keys() & state.keys():
        x = sharding.local(state[name])
        found[name] = describe(x)
        if isinstance(x, Tensor) and overlaps_itself(x):
            found[name] += " in expanded memory"
    raise StructureMismatch.between(
        f"the optimizer's state of {plan.what} with shape {list(plan.place.shape)}",
        {k: described(plan.specs[k].dtype, s) for k, s in plan.parts.items()},
        found,
        "Was the parameter, its data or its state replaced after the optimizer was "
        "made? Make a new optimizer; or `del optimizer.state[param]` begins anew for "
        "this parameter alone.",
    )


def follow(state: State, param: Tensor) -> None:
    """Moves a parameter's own arrays to its device, if it was moved."""
    for name, value in state.items():
        if not name.startswith(SHARED) and value.device != param.device:
            state[name] = value.to(param.device)
