"""Frozen configuration dataclasses: checks, JSON and TOML forms, a stable hash.

A configuration is a frozen, keyword-only dataclass that checks itself in
`__post_init__` with the helpers below. The same object is the Python API, the
command line, the recipe file and the record saved with a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lopax._core.errors import ConfigError, UnknownName

C = TypeVar("C")


def check_range(
    owner: object,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises `ConfigError` unless the field is a finite number in the given interval.

    `low`/`high` are inclusive bounds, `above`/`below` exclusive ones.
    """
    value = getattr(owner, name)
    legal = " and ".join(
        f"{symbol} {bound}"
        for symbol, bound in ((">=", low), (">", above), ("<=", high), ("<", below))
        if bound is not None
    )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (
        number
        and math.isfinite(value)
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    ):
        kind = "number" if not number or math.isfinite(value) else "finite number"
        raise ConfigError(
            f"{type(owner).__name__}.{name} = {value!r}: must be a {kind} {legal}"
        )


def check_choice(owner: object, name: str, choices: Iterable[str]) -> None:
    """Raises `ConfigError` unless the field is one of `choices`."""
    check_one_of(f"{type(owner).__name__}.{name}", getattr(owner, name), choices)


def check_one_of(what: str, value: object, choices: Iterable[str]) -> None:
    """Raises `ConfigError` unless the value, called so, is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise ConfigError(
            f"{what} = {value!r}: must be one of " + ", ".join(map(repr, known))
        )


def check_name(owner: object, name: str) -> None:
    """Raises `ConfigError` unless the field is a text that can be part of a file name:
    no slashes or control characters, no dot in front, 1 to 100 characters."""
    value = getattr(owner, name)
    if not (
        isinstance(value, str)
        and 1 <= len(value) <= 100
        and value.isprintable()
        and not value.startswith(".")
        and not set(value) & set("/\\")
    ):
        raise ConfigError(
            f"{type(owner).__name__}.{name} = {value!r}: is part of a file name: 1 to "
            "100 printable characters without slashes, not beginning with a dot"
        )


def to_dict(config: Any) -> Any:
    """A configuration as plain JSON values (tuples become lists)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)
        }
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(v) for v in config]
    return config


def from_dict(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Builds a (nested) configuration dataclass from plain values.

    Raises `UnknownName` for a key the class does not have, `ConfigError` for a value
    of the wrong type or outside its range, and for any number that is not finite or an
    integer beyond 64 bits.
    """
    where = where or cls.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r}: must be a table of settings")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    built = {}
    for key, value in values.items():
        if key not in fields:
            raise UnknownName(f"setting in {where}", key, fields)
        _check_numbers(value, f"{where}.{key}")
        built[key] = _coerce(hints[key], value, f"{where}.{key}")
    try:
        return cls(**built)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_numbers(value: Any, where: str) -> None:
    """Raises `ConfigError` for a number, at any depth, that no setting can be."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_numbers(inner, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value!r}: must be a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where}: an integer of more than 64 bits")


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        if isinstance(value, Mapping):
            args = _nearest(args, value)
        problem: ConfigError | None = None
        for option in args:
            if option is type(None):
                continue
            try:
                return _coerce(option, value, where)
            except ConfigError as error:
                problem = error
        raise problem or ConfigError(f"{where} = {value!r}: does not fit {hint}")
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(args[0], v, where) for v in value)
        if len(value) != len(args):
            raise ConfigError(f"{where} = {value!r}: must have {len(args)} entries")
        return tuple(_coerce(a, v, where) for a, v in zip(args, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or origin is typing.Literal:
        return value
    expected = origin or hint
    is_bool_for_int = expected is int and isinstance(value, bool)
    if isinstance(expected, type) and (
        not isinstance(value, expected) or is_bool_for_int
    ):
        raise ConfigError(
            f"{where} = {value!r}: must be of type {expected.__name__}, "
            f"is {type(value).__name__}"
        )
    return value


def _nearest(options: tuple[Any, ...], value: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of several configuration classes, the one that has most of the given keys, so
    that an error speaks of what was meant; other options stay as they are."""
    classes = [o for o in options if dataclasses.is_dataclass(o)]
    if len(classes) < 2:
        return options
    best = max(
        classes, key=lambda c: len({f.name for f in dataclasses.fields(c)} & set(value))
    )
    return tuple(o for o in options if o is best or o not in classes)


def merge(base: Mapping[str, Any], *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged left to right; later ones win."""
    merged = dict(base)
    for override in overrides:
        for key, value in override.items():
            old = merged.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def config_hash(config: Any, length: int = 12) -> str:
    """A short, stable hash of a configuration's JSON form."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
