"""Names resolve through explicit registries: no eval, no getattr on user strings."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from lopax._core.errors import ConfigError, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to things of one kind.

    **Arguments:**

    - `kind`: what the entries are ("architecture", "task"), for error messages.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Registers `entry`; raises `ConfigError` if the name is taken."""
        if name in self._entries:
            raise ConfigError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        """Raises `UnknownName` (with near matches) if there is no such entry."""
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise UnknownName(self.kind, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self, pattern: str = "*") -> list[str]:
        """Names that match a shell pattern, in order of registration."""
        return [n for n in self._entries if fnmatch.fnmatchcase(n, pattern)]


def by_rule(base: type[T], namespace: Mapping[str, Any]) -> dict[str, type[T]]:
    """The subclasses of `base` in a module that have a rule of their own (their
    `rule_class`), by its name, in the order they stand there."""
    found: dict[str, type[T]] = {}
    for made in namespace.values():
        if isinstance(made, type) and issubclass(made, base):
            rule = vars(made).get("rule_class")
            if rule is not None:
                found[rule.name] = made
    return found
