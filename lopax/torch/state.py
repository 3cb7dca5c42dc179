"""The optimizer's state: made, checked, restored from a state dict, moved.

What all tensors share is one set of tensors, referred to from every parameter's state
under names that begin with `shared_`. So a state dict has nothing beside per-parameter
state, and a tool that splits, renames or shards it keeps the shared part too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lopax._core.errors import StructureMismatch
from lopax.torch import sharding
from lopax.torch.geometry import Accumulator, View, factored_axes
from lopax.torch.rule import Rule

SHARED = "shared_"
COUNTERS = ("num_steps", "iteration", "skipped")
State = dict[str, Tensor]


def accumulators(
    rule: Rule, shape: tuple[int, ...], layout: str, role: str
) -> dict[str, Accumulator]:
    """The arrays of a parameter's own state; `shape`: as the rule sees it."""
    return rule.accumulators(len(shape), factored_axes(shape, layout), role)


def init_shared(rule: Rule, num_steps: int, device: torch.device) -> State:
    """Before the first step: counters, and what the rule shares between tensors."""

    def count(n: int) -> Tensor:
        return torch.tensor(n, dtype=torch.int32, device=device)

    return {
        "num_steps": count(num_steps),
        "iteration": count(0),
        "skipped": count(0),
        **rule.init_shared(num_steps),
    }


def init_param(
    param: Tensor, see: View, specs: Mapping[str, Accumulator], shared: State
) -> State:
    """A parameter's state before its first step."""
    own = {name: sharding.start_for(param, see, spec) for name, spec in specs.items()}
    return own | refer(shared)


def refer(shared: State) -> State:
    """The entries by which a parameter's state refers to what is shared."""
    return {f"{SHARED}{name}": value for name, value in shared.items()}


def restore(
    saved: Mapping[str, Any],
    param: Tensor,
    expected: Mapping[str, tuple[int, ...]],
    name: str,
) -> State:
    """Copies of saved tensors on the parameter's device, in the dtype they have.

    (`torch.optim.Optimizer` would cast them to the parameter's dtype, and would share
    memory with the state dict where no cast is needed.)

    Raises `StructureMismatch` if names or shapes are not the `expected` ones.
    """
    want = {k: str(list(s)) for k, s in expected.items()}
    have = {k: str(list(v.shape)) for k, v in saved.items()}
    if want != have:
        raise StructureMismatch.between(
            f"saved optimizer state of {name}",
            want,
            have,
            "Was it saved by another rule, for another model, or with another layout?",
        )
    return {k: v.detach().to(param.device, copy=True) for k, v in saved.items()}


def follow(state: State, param: Tensor) -> None:
    """Moves a parameter's own arrays to its device, if it was moved."""
    for name, value in state.items():
        if not name.startswith(SHARED) and value.device != param.device:
            state[name] = value.to(param.device)
