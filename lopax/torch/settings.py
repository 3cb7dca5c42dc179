"""Settings of a rule: which of them matter in torch, and the rule that has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lopax._core.config import from_dict
from lopax._core.errors import ConfigError
from lopax.rules import form

ELSEWHERE = ("backend", "start", "unrolled")
"""Settings of rules that say how JAX computes, or how a fresh theta is made."""


def known_settings(
    told: type[form.Rule], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the settings saved with weights, those that matter in torch."""
    names = {f.name for f in dataclasses.fields(told.config_class)} - {*ELSEWHERE}
    return {k: v for k, v in settings.items() if k in names}


def with_settings(told: type[form.Rule], settings: Mapping[str, Any]) -> form.Rule:
    """A rule with what a user asks for. Raises `UnknownName`, `ConfigError`."""
    for name in ELSEWHERE:
        if name in settings and hasattr(told.config_class, name):
            raise ConfigError(
                f"{name} = {settings[name]!r}: this setting of {told.name!r} is for "
                "meta-training and JAX, and does nothing here: leave it out"
            )
    where = f"architecture {told.name!r}"
    return told(from_dict(told.config_class, settings, where=where))
