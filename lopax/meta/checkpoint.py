"""Any pytree of arrays to a file and back, exactly: `save_state`, `load_state`.

Used for meta-training checkpoints and for optimizer states alike. The file holds
arrays by path name; the structure (NamedTuples and all) comes from the program, and a
difference between the two is reported path by path.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core import tree as trees
from lopax._core.errors import StructureMismatch
from lopax.pretrained.files import read_arrays, write_arrays


def is_key(x: Any) -> bool:
    """Whether x is a typed PRNG key array."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path name; typed PRNG keys as their raw data."""
    return {
        name: np.asarray(jax.random.key_data(x) if is_key(x) else x)
        for name, x in trees.named_leaves(tree).items()
    }


def save_state(path: str | os.PathLike[str], tree: Any, **header: Any) -> None:
    """Writes a pytree of arrays atomically; `header` entries must be JSON.

    Raises `NotWritable` for a folder, a place below a file, a full disk and the like.
    """
    write_arrays(path, to_arrays(tree), {"kind": "state", **header})


def load_state(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads a pytree with the structure of `like` (arrays or shape structs).

    Raises `FileFormatError` for a damaged file and `StructureMismatch` (expected
    against found) if it holds another structure.
    """
    return from_arrays(read_arrays(path).arrays, like, f"the state in {path}")


def from_arrays(arrays: dict[str, np.ndarray], like: Any, what: str) -> Any:
    """The inverse of `to_arrays`; see `load_state`."""
    raw = jax.eval_shape(
        lambda t: jax.tree.map(
            lambda x: jax.random.key_data(x) if is_key(x) else jnp.asarray(x), t
        ),
        like,
    )
    want = trees.describe(raw)
    have = {k: trees.describe_leaf(v) for k, v in arrays.items()}
    if want != have:
        raise StructureMismatch.between(what, want, have)

    def restore(name: str, x: Any) -> Any:
        value = jnp.asarray(arrays[name])
        if is_key(x):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(x))
        return value

    return trees.map_named(restore, like)
