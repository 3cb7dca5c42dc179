"""Which axes of a tensor play which part: factored axes, and torch's layouts.

Celo keeps second moments by row and by column of the two largest axes. Sizes decide
which axis is which, so the result does not depend on how a tensor is stored, except
when sizes tie: then the published rule goes by the order of the axes, as JAX libraries
store them, `(*window, in, out)`. torch.nn stores `(out, in, *window)`. We therefore
break ties as if the axes were read in JAX's order, so that one network, stored either
way, trains the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lopax.rules.form import Place

View = Callable[[tuple[int, ...]], tuple[int, ...]]
"""From the shape of a tensor, or of a shard of it, to the one a rule sees."""

LAYOUTS = ("out_in", "in_out")
"""`out_in`: as torch.nn stores weights. `in_out`: `(*window, in, out)`, as JAX
libraries and the `Conv1D` of transformers' GPT-2 do."""


def reading_order(rank: int, layout: str) -> tuple[int, ...]:
    """The axes of a stored tensor in the order `(*window, in, out)`."""
    if layout == "in_out" or rank < 2:
        return tuple(range(rank))
    return (*range(2, rank), 1, 0)


def place_of(
    shape: tuple[int, ...], layout: str, role: str = "", scalar: bool = False
) -> Place:
    """A tensor stored in this layout, as its rule knows it. `shape`: of rank one or
    more; `scalar`: to the user it has no axes."""
    return Place(shape, scalar, role, reading_order(len(shape), layout))


def seen(shape: tuple[int, ...], layout: str, flatten: bool) -> tuple[int, ...]:
    """The shape a rule sees: (1,) for a scalar, and if it flattens convolutions,
    (out, in x window) or (window x in, out) for a kernel of one."""
    if not flatten or len(shape) < 4:
        return shape or (1,)
    if layout == "in_out":
        return math.prod(shape[:-1]), shape[-1]
    return shape[0], math.prod(shape[1:])


class Accumulator(NamedTuple):
    """One array of a tensor's state: which of the tensor's axes it keeps.

    Its shape is `(copies, *sizes of axes, *behind)`, without the first entry if
    `copies` is 0.
    """

    copies: int
    axes: tuple[int, ...]
    start: Any = None  # [*shape] tensor with the first values; default: zeros
    stack: int | None = None  # of so many tensors that are stacked, in front
    behind: tuple[int, ...] = ()  # numbers of its own for each of its elements
    dtype: torch.dtype = torch.float32

    def shape(self, tensor: tuple[int, ...]) -> tuple[int, ...]:
        lead = (self.copies,) if self.copies else ()
        front = () if self.stack is None else (self.stack,)
        return (*front, *lead, *(tensor[a] for a in self.axes), *self.behind)
