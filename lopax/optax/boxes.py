"""Boxes that Flax puts around arrays, with the names of mesh axes in them.

Flax itself is not imported: its boxes are known by what they can do.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lopax.blocks.narrow_momenta import InBlocks

_NNX_NAMES = ("out_sharding", "sharding", "sharding_names", "optimizer_sharding")


def around(box: Any, axes: tuple[int | None, ...], x: Any) -> Any:
    """A box as `box` around an array of a state, or the array if it says nothing of
    axes.

    **Arguments:**

    - `axes`: for each axis of `x` the axis of the boxed tensor it is, or None.
    """
    if isinstance(x, InBlocks):  # their units have axes of their own
        return x._replace(codes=around(box, axes, x.codes))
    if not jnp.size(x):
        return x
    if hasattr(type(box), "replace_boxed"):
        names = _moved(getattr(box, "names", None), axes)
        return x if names is None else box.replace_boxed(x).replace(names=names)
    metadata = dict(box.get_metadata())
    moved = {key: _moved(metadata.get(key), axes) for key in _NNX_NAMES}
    moved = {key: names for key, names in moved.items() if names is not None}
    return type(box)(x, **(metadata | moved)) if moved else x


def _moved(names: Any, axes: tuple[int | None, ...]) -> tuple[Any, ...] | None:
    if not isinstance(names, (tuple, list)) or not any(names):
        return None
    return tuple(None if i is None or i >= len(names) else names[i] for i in axes)
