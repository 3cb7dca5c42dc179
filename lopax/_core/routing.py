"""Which rule for which parameter, and which of its axes are what.

One table serves every architecture that treats tensors differently (orthogonalised
matrices and Adam for the rest, hidden layers whose step shrinks with their width), in
JAX and in torch. Names are paths: torch's `block.0.weight` is `block/0/weight`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lopax._core.config import check_choice, check_range, from_dict
from lopax._core.errors import ConfigError
from lopax._core.kinds import KINDS, kind_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """Says something about the tensors that meet all of its conditions.

    What it says are a role and a shape. Of several routes the first that fits and says
    something about the role decides the role, and so for each field of the shape.

        Route(name="^layers/", stack_axes=(0,))
        Route(name="(query|key|value)/kernel", output_axes=(-2, -1))
    """

    role: str | None = None
    """For rules that have roles."""
    stack_axes: tuple[int, ...] = ()
    """Axes along which tensors of one kind are stacked: the layers of a scan, experts.
    The result is that of separate tensors."""
    output_axes: tuple[int, ...] | None = None
    """Of a tensor [*stack, *input, *output], wherever the axes are: those of the
    output. Together they are one axis of a matrix, the other axes the other."""
    split: tuple[int, int] | None = None
    """An axis and a number: so many matrices of equal size lie side by side along it,
    as in a fused projection to queries, keys and values."""
    name: str | None = None
    """A regular expression searched for in the tensor's path, `block/0/w`."""
    min_rank: int = 0
    """Number of axes. For a role those of size one do not count, nor a stack's."""
    max_rank: int | None = None
    kind: str | None = None
    """What name, shape or module tell of the tensor, one of `_core.kinds.KINDS`."""
    predicate: Callable[[str, tuple[int, ...]], bool] | None = None
    """Path and shape (as the framework stores it; for a role that of one tensor of a
    stack) to yes or no. It cannot be written to a file, so settings that are to be
    saved with weights use the other conditions."""

    def __post_init__(self) -> None:
        check_range(self, "min_rank", low=0)
        if self.max_rank is not None:
            check_range(self, "max_rank", low=self.min_rank)
        if self.kind is not None:
            check_choice(self, "kind", KINDS)
        for field in ("stack_axes", "output_axes", "split"):
            value = getattr(self, field)
            if value is not None:
                _check_axes(f"Route.{field}", value)
                object.__setattr__(self, field, tuple(value))
        if self.split is not None and (len(self.split) != 2 or self.split[1] < 1):
            raise ConfigError(
                f"Route.split = {self.split!r}: must be an axis and a number >= 1"
            )
        try:
            re.compile(self.name or "")
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"Route.name = {self.name!r}: must be a regular expression ({error})"
            ) from None

    def fits_rank(self, rank: int) -> bool:
        return self.min_rank <= rank and (
            self.max_rank is None or rank <= self.max_rank
        )

    def fits_name(
        self, name: str, shape: tuple[int, ...], kind: str | None = None
    ) -> bool:
        return (
            (self.name is None or re.search(self.name, name) is not None)
            and (self.kind is None or self.kind == kind)
            and (self.predicate is None or self.predicate(name, shape))
        )

    @property
    def needs_name(self) -> bool:
        asked = (self.name, self.predicate, self.kind)
        return any(condition is not None for condition in asked)


def vectors_and_tables(role: str) -> tuple[Route, ...]:
    """Routes that give a role to what is not a matrix in spirit: vectors, embeddings,
    layers over a vocabulary."""
    return (
        Route(role=role, max_rank=1),
        Route(role=role, kind="embedding"),
        Route(role=role, kind="vocabulary"),
    )


def role_of(
    name: str | None,
    shape: tuple[int, ...],
    routes: Sequence[Route],
    default: str,
    kind: str | None = None,
) -> str:
    """The role of the first route that matches and has one, else `default`.

    **Arguments:**

    - `shape`: of one tensor, if several are stacked.
    - `kind`: what the tensor is known to be; by default what `kind_of` makes of it.

    Raises `ConfigError` if that depends on a name that is not known.
    """
    kind = kind or kind_of(name, shape)
    for route in routes:
        if route.role is None or not route.fits_rank(sum(n != 1 for n in shape)):
            continue
        if name is None and route.needs_name:
            raise ConfigError(
                f"a parameter of shape {shape} is treated by its name, which is not "
                "known. Pass the model itself or its names, model.named_parameters(), "
                "or say what the parameters of a group are: "
                f'{{"params": ..., "role": {route.role!r}}}'
            )
        if route.fits_name(name or "", shape, kind):
            return route.role
    return default


class Seen(NamedTuple):
    """A tensor as a rule sees it: `copies` tensors of shape `shape`, made of the stored
    one by splitting an axis in two, reordering the axes, and joining some."""

    copies: int | None  # None: it is not a stack
    shape: tuple[int, ...]  # of one tensor
    split: tuple[int, int] | None  # axis, number of pieces
    order: tuple[int, ...]  # of the axes after the split: stack, input, output
    stacked: int = 0  # how many of them are the stack's

    @property
    def unchanged(self) -> bool:
        """Whether the rule sees the tensor as it is."""
        return self.copies is None and self.order == tuple(range(len(self.shape)))

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape with the stack in front."""
        return self.shape if self.copies is None else (self.copies, *self.shape)


def seen(
    name: str | None, shape: tuple[int, ...], routes: Sequence[Route], out_first: bool
) -> Seen:
    """What the routes make of a tensor's shape.

    **Arguments:**

    - `out_first`: where axes are joined, a matrix [out, in], not [in, out].

    Raises `ConfigError` for axes the tensor does not have, or has twice, and if it
    depends on a name that is not known.
    """
    said: dict[str, Any] = {}
    kind = kind_of(name, shape)
    for route in routes:
        says = {
            "stack_axes": route.stack_axes or None,
            "output_axes": route.output_axes,
            "split": route.split,
        }
        new = {k: v for k, v in says.items() if v is not None and k not in said}
        if not new or not route.fits_rank(len(shape)):
            continue
        if name is None and route.needs_name:
            raise ConfigError(
                f"the axes of a parameter of shape {shape} depend on its name, which "
                "is not known. Pass the model itself, or model.named_parameters()"
            )
        if route.fits_name(name or "", shape, kind):
            said |= new
    if not said:
        return Seen(None, shape, None, tuple(range(len(shape))))
    return _plan(name, shape, said, out_first)


def _plan(
    name: str | None, shape: tuple[int, ...], said: dict[str, Any], out_first: bool
) -> Seen:
    rank, what = len(shape), f"parameter {name!r} of shape {shape}"

    def axes(field: str, given: Sequence[int]) -> list[int]:
        found = [a + rank if a < 0 else a for a in given]
        if any(not 0 <= a < rank for a in found) or len(set(found)) < len(found):
            raise ConfigError(
                f"{what}: {field} = {tuple(given)} must be different axes of it, from "
                f"{-rank} to {rank - 1}. A route's name, min_rank or max_rank says "
                "which tensors it is for"
            )
        return found

    stack = axes("stack_axes", said.get("stack_axes", ()))
    output = axes("output_axes", said.get("output_axes") or ())
    rest = [a for a in range(rank) if a not in stack]
    if set(stack) & set(output) or (output and len(output) == len(rest)):
        raise ConfigError(
            f"{what}: output_axes = {tuple(output)} must leave other axes for the "
            f"input, and have none of stack_axes = {tuple(stack)}"
        )
    sizes, split = list(shape), None
    if said.get("split") is not None:
        given, pieces = said["split"]
        (axis,) = axes("split[0]", (given,))
        if axis in stack or shape[axis] % pieces:
            raise ConfigError(
                f"{what}: split = {(given, pieces)} must divide an axis that is not "
                "one of stack_axes into equal parts"
            )
        split = (axis, pieces)
        sizes[axis : axis + 1] = [pieces, shape[axis] // pieces]
        later = [[a + (a >= axis) for a in group] for group in (rest, output)]
        stack = [*(a + (a > axis) for a in stack), axis]
        rest, output = later
    if output:
        inputs = [a for a in rest if a not in output]
        joined = [output, inputs] if out_first else [inputs, output]
    else:
        joined = [[a] for a in rest]
    return Seen(
        copies=math.prod(sizes[a] for a in stack) if stack else None,
        shape=tuple(math.prod(sizes[a] for a in group) for group in joined),
        split=split,
        order=(*stack, *(a for group in joined for a in group)),
        stacked=len(stack),
    )


def check_roles(
    owner: object, routes: Sequence[Route], default: str | None, roles: Sequence[str]
) -> None:
    """Raises `ConfigError` if a route or the default names a role that is not there."""
    for role in (*(r.role for r in routes), default):
        if role is not None and role not in roles:
            raise ConfigError(
                f"{type(owner).__name__}: role {role!r} must be one of "
                + (", ".join(map(repr, roles)) or "none: the rule has no roles")
            )


def checked(routes: Any) -> tuple[Route, ...]:
    """A user's routes as a tuple. Raises `ConfigError` for anything else."""
    listed = (routes,) if isinstance(routes, Route) else tuple(routes or ())
    listed = tuple(from_dict(Route, r) if isinstance(r, Mapping) else r for r in listed)
    for route in listed:
        if not isinstance(route, Route):
            raise ConfigError(f"routes = {routes!r}: must be a list of lopax.Route")
    return listed


def _check_axes(what: str, value: Any) -> None:
    fine = isinstance(value, (tuple, list)) and all(
        isinstance(a, int) and not isinstance(a, bool) for a in value
    )
    if not fine:
        raise ConfigError(f"{what} = {value!r}: must be a tuple of whole numbers")
