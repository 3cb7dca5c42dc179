"""The places of a tree's tensors, as a rule is told them: stacks are several."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lopax._core import tree as trees
from lopax._core.leaves import trained
from lopax._core.routing import Seen
from lopax._core.types import Params


class Leaf(int):
    """One tensor's place in the tree: an index that knows the tensor's name and shape.

    It is an `int`, so that a rule that only looks up its part of a per-tensor context
    can use it as one.
    """

    name: str  # path in the tree, `block/0/w`
    shape: tuple[int, ...]  # as the user has it: () for a scalar

    def __new__(cls, index: int, name: str, shape: tuple[int, ...]) -> Leaf:
        leaf = super().__new__(cls, index)
        leaf.name, leaf.shape = name, shape
        return leaf


def places_of(params: Params) -> list[Leaf]:
    """The place of every tensor that is trained, in tree order."""
    named = jax.tree_util.tree_leaves_with_path(trained(params))
    return [
        Leaf(i, trees.path_name(path), tuple(jnp.shape(x)))
        for i, (path, x) in enumerate(named)
    ]


def seen_as(leaf: Leaf, view: Seen, index: int = 0) -> Leaf:
    """The place of one of the tensors that a stored one is seen as."""
    return Leaf(index, leaf.name, view.shape)


def numbered(
    places: Sequence[Leaf], views: Sequence[Seen], first: int = 0
) -> tuple[list[Leaf], list[slice]]:
    """The places of all tensors a rule sees, and which of them are each leaf's.

    The tensors of a stack have its name and their own shape. They are counted from
    `first`.
    """
    found: list[Leaf] = []
    parts = []
    for leaf, view in zip(places, views, strict=True):
        start, copies = len(found), 1 if view.copies is None else view.copies
        for i in range(start, start + copies):
            found.append(seen_as(leaf, view, first + i))
        parts.append(slice(start, start + copies))
    return found, parts
