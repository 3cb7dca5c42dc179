"""Rules' nested dicts and named tuples, as the flat names an optimizer's state has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lopax._core.errors import ConfigError
from lopax.rules.form import Keeps


def nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """A tree of arrays from their path names."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The inverse: path names and arrays."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from paths(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def flat(state: Any) -> dict[str, Tensor]:
    """The arrays of (nested) named tuples by name."""
    return dict(_walk(state, ""))


def _walk(state: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name in getattr(state, "_fields", ()):
        value = getattr(state, name)
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _walk(value, f"{prefix}{name}_")


def filled(like: Any, arrays: Mapping[str, Tensor], prefix: str = "") -> Any:
    """The inverse of `flat`: the structure of `like` with other arrays."""
    if not hasattr(like, "_fields"):
        return like
    found = [
        arrays[f"{prefix}{name}"]
        if isinstance(value, Tensor)
        else filled(value, arrays, f"{prefix}{name}_")
        for name, value in zip(like._fields, like, strict=True)
    ]
    return type(like)(*found)


def gathered(keeps: Any, arrays: Mapping[str, Tensor]) -> Any:
    """A tensor's state in the structure that `form.Rule.keeps` returned; None for what
    it does not have."""
    fields = keeps._asdict().items()
    found = [
        arrays.get(name) if v is None or isinstance(v, Keeps) else gathered(v, arrays)
        for name, v in fields
    ]
    return type(keeps)(*found)


def arrays(keeps: Any) -> dict[str, Keeps]:
    """The arrays of a tensor's state by name. Raises `ConfigError` if a name is there
    twice, at whatever depth: in a state dict only one of the two would be left."""
    names = list(_fields(keeps))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"two fields of what {type(keeps).__name__} keeps are called {twice[0]!r}: "
            "a tensor's arrays are known by their names alone; give them names of "
            "their own"
        )
    return {name: k for name, k, _ in of_state(keeps, keeps)}


def _fields(keeps: Any) -> Iterator[str]:
    for name, value in keeps._asdict().items():
        if value is None or isinstance(value, Keeps):
            yield name
        else:
            yield from _fields(value)


def of_state(keeps: Any, state: Any) -> Iterator[tuple[str, Keeps, Any]]:
    """The arrays of a state in that structure, by name."""
    for name, k, value in zip(keeps._fields, keeps, state, strict=True):
        if isinstance(k, Keeps):
            yield name, k, value
        elif k is not None:
            yield from of_state(k, value)
