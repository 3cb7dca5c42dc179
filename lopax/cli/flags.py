"""Command lines from typed dataclasses, with tyro."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from lopax._core.errors import ConfigError

F = TypeVar("F")


def named(name: str) -> Any:
    """For `Annotated`: what --help calls the value of a flag or positional."""
    return tyro.conf.arg(metavar=name)


def parse(cls: type[F], argv: Sequence[str], command: str, about: str) -> F:
    """The dataclass `cls` from `argv`; exits with 2 on bad usage, 0 on --help.

    Raises `ConfigError` for a count of zero or less: no flag reads zero as "default".
    """
    found = tyro.cli(cls, args=list(argv), prog=f"lopax {command}", description=about)
    check_counts(found)
    return found


def check_counts(found: Any, may_be_zero: Sequence[str] = ()) -> None:
    """Raises `ConfigError` unless all integer fields are at least 1 (or, where they
    may be zero, 0) and below 2^31."""
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        low = 0 if field.name in may_be_zero else 1
        if not low <= value < 2**31:
            flag = field.name.replace("_", "-")
            raise ConfigError(
                f"--{flag} {value}: must be at least {low}"
                + (", below 2^31" if value >= low else "")
            )


def parse_known(
    cls: type[F], argv: Sequence[str], command: str, about: str
) -> tuple[F, list[str]]:
    """Like `parse` without `check_counts`, but hands back what it does not know."""
    return tyro.cli(
        cls,
        args=list(argv),
        prog=f"lopax {command}",
        description=about,
        return_unknown_args=True,
    )


def override(
    config: Any, argv: Sequence[str], command: str, skip: Sequence[str]
) -> Any:
    """`config` with the fields named on the command line replaced.

    Every field of the (nested) dataclass has a flag of its own but those in `skip`,
    which hold free-form tables and come from recipes only.
    """
    hints = typing.get_type_hints(type(config))
    fields = [
        (f.name, hints[f.name], dataclasses.field(default=getattr(config, f.name)))
        for f in dataclasses.fields(config)
        if f.name not in skip
    ]
    flags = dataclasses.make_dataclass(
        f"{type(config).__name__}Flags", fields, frozen=True, kw_only=True
    )
    chosen = tyro.cli(flags, args=list(argv), prog=f"lopax {command}")
    return dataclasses.replace(
        config, **{name: getattr(chosen, name) for name, *_ in fields}
    )
