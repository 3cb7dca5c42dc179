"""Parameter groups: names of parameters, and settings that are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lopax._core.errors import ConfigError


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


def checked_steps(num_steps: Any) -> int:
    if int(num_steps) != num_steps or num_steps < 1:
        raise ConfigError(f"num_steps = {num_steps!r}: must be an integer >= 1")
    return int(num_steps)
