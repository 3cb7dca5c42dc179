"""Settings that would do nothing: refused, and left out where they are old.

A configuration class with an `idle(values)` names, of settings given as plain values,
those that what else is chosen does not heed, each with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from lopax._core.config import merge
from lopax._core.errors import ConfigError


class Config(Protocol):
    """See the module docstring."""

    @staticmethod
    def idle(values: Mapping[str, Any]) -> dict[str, str]: ...


def refuse_idle(config: Any) -> None:
    """Raises `ConfigError` for the first setting that would do nothing."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name, why in config.idle(values).items():
        raise ConfigError(f"{type(config).__name__}.{name} = {values[name]!r}: {why}")


def without_idle(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without those that would do nothing."""
    idle = kind.idle(values)
    return {k: v for k, v in values.items() if k not in idle}


def overridden(
    kind: type[Config],
    base: Mapping[str, Any],
    override: Mapping[str, Any],
    choice: str,
) -> dict[str, Any]:
    """A phase's settings over the run's. If they choose another kind (the field
    `choice`), of the run's own only those stay that it has, too."""
    if override.get(choice, base[choice]) != base[choice]:
        base = without_idle(kind, merge(base, {choice: override[choice]}))
    return merge(base, override)
