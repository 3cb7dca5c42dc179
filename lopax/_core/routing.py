"""Which rule for which parameter: roles by name, rank or predicate.

One table serves every architecture that treats tensors differently (orthogonalised
matrices and Adam for the rest, hidden layers whose step shrinks with their width), in
JAX and in torch. Names are paths: torch's `block.0.weight` is `block/0/weight`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from lopax._core.config import check_range
from lopax._core.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """Gives a role to the tensors that meet all of its conditions."""

    role: str
    name: str | None = None
    """A regular expression searched for in the tensor's path, `block/0/w`."""
    min_rank: int = 0
    max_rank: int | None = None
    predicate: Callable[[str, tuple[int, ...]], bool] | None = None
    """Path and shape (as the framework stores it) to yes or no. It cannot be written to
    a file, so settings that are to be saved with weights use the other conditions."""

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

    def fits_rank(self, rank: int) -> bool:
        return self.min_rank <= rank and (
            self.max_rank is None or rank <= self.max_rank
        )

    def fits_name(self, name: str, shape: tuple[int, ...]) -> bool:
        return (self.name is None or re.search(self.name, name) is not None) and (
            self.predicate is None or self.predicate(name, shape)
        )

    @property
    def needs_name(self) -> bool:
        return self.name is not None or self.predicate is not None


def role_of(
    name: str | None, shape: tuple[int, ...], routes: Sequence[Route], default: str
) -> str:
    """The role of the first route that matches, else `default`.

    Raises `ConfigError` if that depends on a name that is not known.
    """
    for route in routes:
        if not route.fits_rank(len(shape)):
            continue
        if name is None and route.needs_name:
            raise ConfigError(
                f"a parameter of shape {shape} is treated by its name, which is not "
                "known. Pass names, model.named_parameters(), or say what the "
                f'parameters of a group are: {{"params": ..., "role": {route.role!r}}}'
            )
        if route.fits_name(name or "", shape):
            return route.role
    return default


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
