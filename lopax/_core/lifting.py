"""From one tensor to a tree: places, guards, and stepping equal tensors together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core import tree as trees
from lopax._core.types import Flag, Params, Scalar

GROUP_FROM = 3
"""Fewer equal tensors than this are stepped one by one."""

GROUP_ELEMENTS = 2**10
"""Larger tensors are stepped one by one. On two cores a loop over 64 elements each is
faster than its unrolled form, one over 3x3x16x16 half as fast: XLA runs independent
operations side by side, but not the rounds of a loop."""


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


def places(params: Params) -> list[Leaf]:
    """Every leaf's place, in tree order."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return [
        Leaf(i, trees.path_name(path), tuple(jnp.shape(x)))
        for i, (path, x) in enumerate(named)
    ]


def as_tensor(x: Any) -> Any:
    """float32, and rank at least one: scalars become shape (1,)."""
    x = jnp.asarray(x, jnp.float32)
    return x.reshape(1) if x.ndim == 0 else x


def rms(x: Any) -> Scalar:
    """Root mean square over all elements; 0 if there are none."""
    return jnp.sqrt(jnp.mean(jnp.square(x))) if x.size else jnp.zeros(())


def all_finite(grads: Sequence[Any], value: Any) -> Flag:
    """One flag for the whole step; `x * 0` is 0 if and only if x is finite.

    The flags are stacked before they are combined. A chain of `&` over the tensors
    would be inlined by XLA into the loop of every tensor, so that program size and
    compile time grew with the square of their number.
    """
    zeros = [jnp.sum(g * 0.0) for g in grads]
    if value is not None:
        zeros.append(jnp.asarray(value, jnp.float32) * 0.0)
    return jnp.all(jnp.stack(zeros) == 0.0) if zeros else jnp.asarray(True)


def map_equal_together(
    fn: Callable[..., Any],
    leaves: Sequence[Leaf],
    keys: Sequence[Hashable],
    operands: Sequence[tuple[Any, ...]],
) -> list[Any]:
    """`[fn(leaf, *args) for leaf, args in zip(leaves, operands)]`, where small
    tensors that are alike share one traced and compiled body.

    They are stacked and looped over. `vmap` instead of the loop would let XLA inline
    the stacking of all of them into every one of a rule's many small loops; the
    body of a loop is also the very program that a tensor alone would run.

    **Arguments:**

    - `keys`: what `fn` depends on of a leaf, beside its operands; leaves with equal
        keys and operands of equal structure, shapes and dtypes share the body, which
        sees the first leaf of the group. None: never shared.
    - `operands`: per leaf a tuple of pytrees, the first an array of the tensor's size.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (key, args) in enumerate(zip(keys, operands, strict=True)):
        alone = key is None or args[0].size > GROUP_ELEMENTS
        groups.setdefault((i,) if alone else (key, _signature(args)), []).append(i)
    results: list[Any] = [None] * len(operands)
    for members in groups.values():
        if len(members) < GROUP_FROM:
            for i in members:
                results[i] = fn(leaves[i], *operands[i])
            continue
        stacked = jax.tree.map(
            lambda *xs: jnp.stack(xs), *(operands[i] for i in members)
        )
        first = leaves[members[0]]
        mapped = jax.lax.map(lambda args, leaf=first: fn(leaf, *args), stacked)
        for row, i in enumerate(members):
            results[i] = jax.tree.map(lambda x, row=row: x[row], mapped)
    return results


def _signature(args: Any) -> Hashable:
    """Structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(args)
    return treedef, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
