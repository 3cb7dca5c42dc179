"""Pytrees with readable paths: naming leaves, comparing structures, splitting trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core.errors import StructureMismatch


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `a/b/0`; the keys themselves are not escaped."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves keyed by their path names, in tree order."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """`jax.tree.map` whose function also sees the leaf's path name."""
    return jax.tree_util.tree_map_with_path(lambda p, x: fn(path_name(p), x), tree)


def describe(tree: Any) -> dict[str, str]:
    """Path name -> `float32[3,4]` for each leaf."""
    return {name: describe_leaf(leaf) for name, leaf in named_leaves(tree).items()}


def describe_leaf(leaf: Any) -> str:
    """`float32[3,4]` for anything with a shape and a dtype, else its type name."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return type(leaf).__name__


def check_structure(what: str, expected: Any, found: Any) -> None:
    """Raises `StructureMismatch` unless paths, shapes and dtypes agree."""
    want, have = describe(expected), describe(found)
    if want != have:
        raise StructureMismatch.between(what, want, have)


def nest(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """{("a", "b"): x} -> {"a": {"b": x}}."""
    root: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return root


def is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def split_arrays(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The array leaves of a tree, and a function that puts (traced) arrays back.

    Whatever is not an array (functions, settings, opaque user objects) stays inside
    the returned function, so that the arrays can be arguments of a compiled program
    instead of constants in it.
    """
    leaves, treedef = jax.tree.flatten(tree)
    where = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
    kept = [None if is_array(leaf) else leaf for leaf in leaves]

    def rebuild(arrays: list[Any]) -> Any:
        filled = list(kept)
        for i, array in zip(where, arrays, strict=True):
            filled[i] = array
        return jax.tree.unflatten(treedef, filled)

    return [leaves[i] for i in where], rebuild


def select(flag: Any, on_true: Any, on_false: Any) -> Any:
    """Leafwise `where` with one scalar flag; trees must have the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), on_true, on_false)


def count_elements(tree: Any) -> int:
    """Total number of elements over all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
    """Total bytes over all leaves (works on `jax.eval_shape` results)."""
    return sum(
        int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
