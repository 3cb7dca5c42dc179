"""Keyword arguments that had another name once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[F], F]:
    """A decorator: a function or class also takes arguments by their old names.

        @renamed(lanes="vmap_size")
        def run(*, vmap_size: int = 16) -> None: ...

    Raises `TypeError` for both names at once, as Python does for one name twice.
    """

    def translated(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def with_old_names(*args: Any, **given: Any) -> Any:
            for old, new in names.items():
                if old in given:
                    if new in given:
                        raise TypeError(f"{old} is the old name of {new}; give one")
                    given[new] = given.pop(old)
            return call(*args, **given)

        return with_old_names

    def decorate(target: F) -> F:
        if isinstance(target, type):
            target.__init__ = translated(target.__init__)  # type: ignore[misc]
            return target  # type: ignore[return-value]
        return translated(target)  # type: ignore[return-value]

    return decorate
