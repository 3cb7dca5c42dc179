"""The tensors of a tree as a rule sees them: a stack is several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from lopax._core import leaves, lifting, stacks
from lopax._core.places import numbered, places_of, seen_as
from lopax._core.routing import Seen
from lopax._core.types import Params


class SeenTree:
    """Takes parameters, their gradients and states apart into the tensors a rule sees,
    and puts together what it makes of them. Lists of stored things are in tree order.

    **Attributes:**

    - `tensors`, `treedef`: the trained parameters as they are stored.
    - `stored`: their places; `views`: as what tensors the rule sees each.
    - `places`: of the tensors that the rule sees.
    - `members`: which of those are each stored tensor's.
    """

    def __init__(
        self, params: Params, view: Callable[[str, tuple[int, ...]], Seen]
    ) -> None:
        self.tensors, self.treedef = jax.tree.flatten(leaves.trained(params))
        self.stored = places_of(params)
        self.views = [view(leaf.name, leaf.shape) for leaf in self.stored]
        self.places, self.members = numbered(self.stored, self.views)

    def apart(self, arrays: Sequence[Any]) -> list[Any]:
        """The tensors that the rule sees in stored ones, of rank >= 1."""
        seen = map(stacks.apart, map(lifting.as_tensor, arrays), self.views)
        return [tensor for of_one in seen for tensor in of_one]

    def together(self, tensors: Sequence[Any]) -> list[Any]:
        """The inverse of `apart`; scalars keep shape (1,)."""
        return [
            stacks.together(tensors[part], view, leaf.shape or (1,))
            for part, view, leaf in zip(
                self.members, self.views, self.stored, strict=True
            )
        ]

    def states_apart(self, states: Sequence[Any]) -> list[Any]:
        """The states of the tensors that the rule sees, from the stored ones."""
        seen = map(stacks.states_apart, states, self.views)
        return [state for of_one in seen for state in of_one]

    def states_together(self, states: Sequence[Any]) -> list[Any]:
        """The inverse of `states_apart`."""
        return [
            stacks.states_together(states[part], view)
            for part, view in zip(self.members, self.views, strict=True)
        ]

    def one_of_each(self) -> list[Any]:
        """The place of one tensor of each stored one."""
        return list(map(seen_as, self.stored, self.views))
