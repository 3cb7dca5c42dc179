"""Parameter groups: names of parameters, and settings that are checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lopax._core.errors import ConfigError
from lopax._core.numbers import check_factor
from lopax.torch import sharding
from lopax.torch.errors import UnsupportedParameter
from lopax.torch.geometry import LAYOUTS


def with_names(group: dict[str, Any]) -> dict[str, Any]:
    """A group of (name, parameter) pairs with the names apart, as torch 2.6 and later
    would do; earlier versions take parameters only."""
    params = group.get("params")
    if params is None or isinstance(params, (Tensor, set)):
        return group
    params = list(params)
    pairs = [p for p in params if isinstance(p, tuple)]
    if len(pairs) != len(params) or not pairs:
        return {**group, "params": params}
    names, tensors = zip(*pairs, strict=True)
    return {**group, "params": list(tensors), "param_names": list(names)}


def named(group: dict[str, Any]) -> Iterator[tuple[Tensor, str | None]]:
    """A group's parameters with their names as paths, `block/0/weight`, if known."""
    names = group.get("param_names") or [None] * len(group["params"])
    for param, name in zip(group["params"], names, strict=True):
        yield param, None if name is None else name.replace(".", "/")


def called(name: str | None, group: int, place: int) -> str:
    """A parameter in a message."""
    if name is None:
        return f"parameter {place} of group {group}"
    return f"parameter {name.replace('/', '.')!r}"


def check_settings(merged: Mapping[str, Any], roles: tuple[str, ...]) -> None:
    """Raises `ConfigError` for what a parameter group may not say."""
    for name in ("lr", "weight_decay"):
        check_factor(name, merged[name])
    if merged["layout"] not in LAYOUTS:
        raise ConfigError(
            f"layout = {merged['layout']!r}: must be one of "
            + ", ".join(map(repr, LAYOUTS))
        )
    if roles and merged.get("role") not in (None, *roles):
        raise ConfigError(
            f"role = {merged['role']!r}: must be one of " + ", ".join(map(repr, roles))
        )


def check_supported(param: Tensor, grad: Tensor) -> None:
    """Raises `UnsupportedParameter` for what the rules are not made for."""
    what = f"a parameter of shape {tuple(param.shape)}"
    if grad.layout != torch.strided:
        raise UnsupportedParameter(
            f"{what} has a sparse gradient: build the layer with sparse=False"
        )
    if not param.is_floating_point():
        raise UnsupportedParameter(
            f"{what} has dtype {param.dtype}: only real floating-point parameters are "
            "supported (split complex ones with torch.view_as_real)"
        )
    sharding.refuse_flattened(param)
