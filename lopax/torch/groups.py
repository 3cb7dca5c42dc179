"""Parameter groups: names of parameters, and settings that are checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lopax._core.config import check_one_of
from lopax._core.errors import StructureMismatch
from lopax._core.numbers import check_factor
from lopax.torch import sharding
from lopax.torch.errors import UnsupportedParameter
from lopax.torch.geometry import LAYOUTS

Group = dict[str, Any]
"""A parameter group, as torch has them."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of parameters that can be stepped."""
_ROUNDING = 1e-6


def with_names(group: Group) -> Group:
    """A group of (name, parameter) pairs with the names apart, as torch 2.6 and later
    would do; earlier versions take parameters only."""
    params = group.get("params")
    if params is None or isinstance(params, (Tensor, set)):
        return group
    params = list(params)
    pairs = [p for p in params if isinstance(p, tuple) and len(p) == 2]
    if len(pairs) != len(params) or not pairs:
        return {**group, "params": params}
    names, tensors = zip(*pairs, strict=True)
    return {**group, "params": list(tensors), "param_names": list(names)}


def named(group: Group) -> Iterator[tuple[Tensor, str | None]]:
    """A group's parameters with their names as paths, `block/0/weight`, if known.

    Raises `StructureMismatch` if a program has changed the one list and not the other.
    """
    params = group["params"]
    names = group.get("param_names") or [None] * len(params)
    if len(names) != len(params):
        raise StructureMismatch(
            f"a parameter group has {len(params)} parameters and {len(names)} names: "
            "where group['params'] is changed, change group['param_names'] with it, or "
            "use add_param_group, or make a new optimizer"
        )
    for param, name in zip(params, names, strict=True):
        yield param, None if name is None else name.replace(".", "/")


def called(name: str | None, group: int, place: int) -> str:
    """A parameter in a message."""
    if name is None:
        return f"parameter {place} of group {group}"
    return f"parameter {name.replace('/', '.')!r}"


def check_settings(
    merged: Mapping[str, Any], roles: tuple[str, ...], *, running: bool = False
) -> None:
    """Raises `ConfigError` for what a parameter group may not say.

    `running`: a program may have written it since, and a schedule that ends at zero
    may end a rounding error below.
    """
    for name in ("lr", "weight_decay"):
        value = merged[name]
        if running and isinstance(value, float) and -_ROUNDING < value < 0.0:
            continue
        check_factor(name, value)
    check_one_of("layout", merged["layout"], LAYOUTS)
    if roles and merged.get("role") is not None:
        check_one_of("role", merged["role"], roles)


def check_supported(param: Tensor, grad: Tensor) -> None:
    """Raises `UnsupportedParameter` for what the rules are not made for."""
    what = f"a parameter of shape {tuple(param.shape)}"
    if grad.layout != torch.strided:
        raise UnsupportedParameter(
            f"{what} has a sparse gradient: build the layer with sparse=False"
        )
    if param.is_floating_point() and param.dtype not in DTYPES:
        raise UnsupportedParameter(
            f"{what} has dtype {param.dtype}, in which torch cannot add an update: "
            "train it in bfloat16 or float32, and convert it afterwards"
        )
    if not param.is_floating_point():
        raise UnsupportedParameter(
            f"{what} has dtype {param.dtype}: only real floating-point parameters are "
            "supported (split complex ones with torch.view_as_real)"
        )
    sharding.refuse_flattened(param)
