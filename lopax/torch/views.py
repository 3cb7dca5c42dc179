"""Stacked tensors and matrices with several axes a side, as a rule sees them.

A stack is handed to rules and kernels as separate tensors: views of the parameter, its
gradient and its state, whose first axis is the stack.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from lopax._core.errors import ConfigError
from lopax._core.routing import Seen
from lopax.torch import sharding
from lopax.torch.errors import UnsupportedParameter


def opened(x: Tensor, plan: Seen) -> list[Tensor]:
    """Views of the tensors of a stack, each with its input and output axes in order but
    not joined; of a tensor that is no stack, one."""
    if plan.split is not None:
        axis, pieces = plan.split
        x = x.unflatten(axis, (pieces, -1))
    if plan.order != tuple(range(x.ndim)):
        x = x.permute(plan.order)
    if plan.copies is None:
        return [x]
    places = itertools.product(*(range(n) for n in x.shape[: plan.stacked]))
    return [x[place] for place in places]


def parts(state: dict[str, Tensor], plan: Seen) -> list[dict[str, Tensor]]:
    """The state of each tensor of a stack."""
    if plan.copies is None:
        return [state]
    rows = {k: v.unbind(0) for k, v in state.items()}
    return [{k: v[i] for k, v in rows.items()} for i in range(plan.copies)]


def check(param: Tensor, name: str | None, plan: Seen) -> None:
    """Raises `UnsupportedParameter` for a sharded tensor that is not seen as it is."""
    if not plan.unchanged and sharding.is_dtensor(param):
        raise UnsupportedParameter(
            f"parameter {name!r} of shape {tuple(param.shape)} is sharded, and a route "
            "says that its axes are a stack's or joined: that is supported for whole "
            "tensors only. Take it out of the routes, or do not shard it."
        )


def embeddings(model: torch.nn.Module) -> dict[Tensor, str]:
    """The kind of every parameter that belongs to a module for embeddings, also of one
    that an output layer shares with it."""
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return {m.weight: "embedding" for m in model.modules() if isinstance(m, kinds)}


def of_module(params: Any) -> tuple[Any, dict[Tensor, str]]:
    """Named parameters of a model in the place of parameters, and their kinds.

    Raises `ConfigError` for a model without parameters.
    """
    if not isinstance(params, torch.nn.Module):
        return params, {}
    named = list(params.named_parameters())
    if not named:
        raise ConfigError(f"{type(params).__name__} has no parameters")
    return named, embeddings(params)
