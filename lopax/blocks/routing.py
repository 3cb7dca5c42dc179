"""Which rule for which parameter: roles by name, rank or predicate.

One table serves every architecture that treats tensors differently (orthogonalised
matrices and Adam for the rest, hidden layers whose step shrinks with their width).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.optimizer import Leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """Gives a role to the tensors that meet all of its conditions."""

    role: str
    name: str | None = None
    """A regular expression searched for in the tensor's path, `block/0/w`."""
    min_rank: int = 0
    max_rank: int | None = None
    predicate: Callable[[str, tuple[int, ...]], bool] | None = None
    """Path and shape to yes or no. It cannot be written to a file, so settings that
    are to be saved with weights use the other conditions."""

    def __post_init__(self) -> None:
        check_range(self, "min_rank", low=0)
        if self.max_rank is not None:
            check_range(self, "max_rank", low=self.min_rank)
        try:
            re.compile(self.name or "")
        except re.error as error:
            raise ConfigError(
                f"Route.name = {self.name!r}: must be a regular expression ({error})"
            ) from None

    def matches(self, leaf: Leaf) -> bool:
        """Whether the tensor meets every condition."""
        rank = len(leaf.shape)
        return (
            self.min_rank <= rank
            and (self.max_rank is None or rank <= self.max_rank)
            and (self.name is None or re.search(self.name, leaf.name) is not None)
            and (self.predicate is None or self.predicate(leaf.name, leaf.shape))
        )


def role_of(leaf: Leaf, routes: Sequence[Route], default: str) -> str:
    """The role of the first route that matches, else `default`."""
    return next((r.role for r in routes if r.matches(leaf)), default)


def check_roles(
    owner: object, routes: Sequence[Route], default: str, roles: Sequence[str]
) -> None:
    """Raises `ConfigError` if a route or the default names a role that is not there."""
    for role in (*(r.role for r in routes), default):
        if role not in roles:
            raise ConfigError(
                f"{type(owner).__name__}: role {role!r} must be one of "
                + ", ".join(map(repr, roles))
            )
