"""What a rule is given of a user's tree: real floating-point tensors, nothing else.

A complex tensor is two real ones, `w/real` and `w/imag` (as optax's
`split_real_and_imaginary` has it). Integers and flags are not trained: they have no
state, and their update is zero. Python floats are scalars. Boxes that frameworks put
around an array (Flax's `nn.Partitioned`, NNX's variables) are looked through, so that
a tensor is called `dense/kernel` with or without one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core import tree as trees
from lopax._core.errors import ConfigError, StructureMismatch
from lopax._core.types import Params, Updates


class ComplexParts(NamedTuple):
    """A complex tensor as two real ones."""

    real: Any
    imag: Any


def is_box(x: Any) -> bool:
    """Whether x is a node that a framework put around one array."""
    kind = type(x)
    flax = hasattr(kind, "replace_boxed")
    nnx = hasattr(kind, "get_metadata") and hasattr(kind, "copy_from")
    return (flax or nnx) and len(jax.tree.leaves(x)) == 1


def unbox(tree: Any) -> Any:
    """The tree without boxes."""
    return jax.tree.map(_content, tree, is_leaf=is_box)


def trained(params: Params) -> Params:
    """The tensors a rule works on, as a tree of the same nodes.

    Idempotent. Raises `ConfigError` for a leaf that is neither an array nor a number.
    """
    return _expand(lambda name, p: _real(name, p), params)


def gradients(params: Params, grads: Updates) -> Updates:
    """Gradients in the structure of `trained(params)`; see `parts`."""
    fix = "Each parameter needs a gradient of its own shape, real if it is real."
    return parts("the gradient", params, grads, fix)


def parts(what: str, params: Params, tree: Any, fix: str = "") -> Any:
    """A tree of arrays like `params` in the structure of `trained(params)`.

    Whatever stands in the place of a whole number (zeros, `float0`, None) is ignored.
    Raises `StructureMismatch` for other trees and shapes than those of `params`, and
    for a complex array in the place of a real parameter.
    """
    wrong: dict[str, tuple[str, str]] = {}

    def one(name: str, param: Any, found: Any) -> Any:
        found = _content(found)
        if _kind(param) == "other":
            return ()
        shape = getattr(found, "shape", () if is_plain_number(found) else None)
        split = _kind(param) == "complex"
        if shape != jnp.shape(param) or (_kind(found) == "complex" and not split):
            wrong[name] = (trees.describe_leaf(param), trees.describe_leaf(found))
            return param
        return ComplexParts(jnp.real(found), jnp.imag(found)) if split else found

    split_up = _expand(one, params, flatten_like(what, params, tree))
    if wrong:
        raise StructureMismatch.between(
            what,
            {name: want for name, (want, _) in wrong.items()},
            {name: have for name, (_, have) in wrong.items()},
            fix,
        )
    return split_up


def nodes(params: Params) -> Any:
    """`trained(params)` with the user's own leaf, or the box around it, in the place
    of each tensor."""

    def one(name: str, param: Any, node: Any) -> Any:
        del name
        kind = _kind(param)
        return () if kind == "other" else _twice(node) if kind == "complex" else node

    return _expand(one, params, jax.tree.leaves(params, is_leaf=is_box))


def _twice(x: Any) -> ComplexParts:
    return ComplexParts(x, x)


def in_place(params: Params, moves: Updates) -> Updates:
    """Updates in the structure of `params` from those of `trained(params)`: complex
    tensors put together, zeros for what is not trained, boxes around them."""
    found, treedef = jax.tree.flatten(params, is_leaf=is_box)
    whole = []
    for node, move in zip(found, treedef.flatten_up_to(moves), strict=True):
        param = _content(node)
        if _kind(param) == "complex":
            real = jnp.finfo(jnp.result_type(param)).dtype
            move = jax.lax.complex(move.real.astype(real), move.imag.astype(real))
        elif _kind(param) == "other":
            move = jnp.zeros(jnp.shape(param), jnp.result_type(param))
        whole.append(move)
    return jax.tree.structure(params).unflatten(whole)


def flatten_like(what: str, params: Params, tree: Any) -> list[Any]:
    """The parts of `tree` at the leaves of `params`. Raises `StructureMismatch`."""
    treedef = jax.tree.structure(params, is_leaf=is_box)
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as error:
        want, have = trees.describe(unbox(params)), trees.describe(unbox(tree))
        if want.keys() == have.keys():
            raise StructureMismatch(
                f"{what} is a tree of other nodes than the parameters ({error})"
            ) from None
        raise StructureMismatch.between(what, want, have) from None


def _expand(fn: Any, params: Params, others: list[Any] | None = None) -> Any:
    """`params` with each leaf replaced by `fn(name, leaf[, other])`, which may be a
    tree or `()`."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
    more: Any = [] if others is None else [others]
    made = [
        fn(trees.path_name(path), _content(node), *rest)
        for (path, node), *rest in zip(pairs, *more, strict=True)
    ]
    return treedef.unflatten(made)


def _content(x: Any) -> Any:
    return jax.tree.leaves(x)[0] if is_box(x) else x


def is_plain_number(x: Any) -> bool:
    """Whether this is a number of Python's own."""
    return isinstance(x, (bool, int, float, complex))


def _kind(x: Any) -> str:
    """ "real", "complex" or "other"."""
    dtype = np.dtype(type(x)) if is_plain_number(x) else getattr(x, "dtype", None)
    if dtype is None:
        return "other"
    if jnp.issubdtype(dtype, jnp.floating):
        return "real"
    return "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else "other"


def _real(name: str, param: Any) -> Any:
    kind = _kind(param)
    if kind == "real":
        # A shape alone is enough for the names and sizes of tensors.
        struct = isinstance(param, jax.ShapeDtypeStruct)
        return param if struct else jnp.asarray(param)
    if kind == "complex":
        param = jnp.asarray(param)
        return ComplexParts(param.real, param.imag)
    dtype = getattr(param, "dtype", None)
    key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended)
    if key or (dtype is None and not is_plain_number(param)):
        raise ConfigError(
            f"the parameter {name!r} is a {type(param).__name__}"
            f"{f' of dtype {dtype}' if key else ''}, not an array of numbers: leave it "
            "out of the tree the optimizer is given"
        )
    return ()
