"""Where a tensor's state lies: split over devices as the tensor is.

Which axis of a state's array is which axis of its tensor is found by asking the rule
for the state of a tensor whose axes all have different sizes, in the same order of
size; so no rule has to declare it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

_FIRST = 1009  # larger than any number of decays or units


class Axes(NamedTuple):
    """For each axis of an array the tensor's axis it is, or None."""

    of: tuple[int | None, ...]


def axes(init: Callable[[tuple[int, ...]], Any], shape: tuple[int, ...]) -> Any:
    """A tree of `Axes` in the structure of `init(shape)`, a tensor's state."""
    marked = list(shape)
    for place, axis in enumerate(np.argsort(np.asarray(shape, int), kind="stable")):
        if shape[axis] > 1:
            marked[axis] = _FIRST + place
    found = jax.eval_shape(lambda: init(tuple(marked)))
    real = jax.eval_shape(lambda: init(shape))
    index = {size: i for i, size in enumerate(marked) if size >= _FIRST}

    def one(x: Any) -> Axes:
        return Axes(tuple(index.get(n) for n in x.shape))

    if jax.tree.structure(found) != jax.tree.structure(real):
        return jax.tree.map(lambda x: Axes((None,) * x.ndim), real)
    return jax.tree.map(one, found)


def is_axes(x: Any) -> bool:
    return isinstance(x, Axes)


def sharding_of(param: Any) -> NamedSharding | None:
    """How a concrete array is split by a mesh of several devices; None if it is not."""
    if isinstance(param, Tracer) or not isinstance(param, jax.Array):
        return None
    found = param.sharding
    if isinstance(found, NamedSharding) and found.mesh.size > 1:
        return found
    return None


def on_one_device(*trees: Any) -> bool:
    """Whether all arrays are there, and on one device."""
    found = set()
    for x in jax.tree.leaves(trees):
        if isinstance(x, Tracer):
            return False
        if isinstance(x, jax.Array):
            found |= x.devices()
    return len(found) < 2


def like(param: Any, state: Any, init: Callable[[tuple[int, ...]], Any]) -> Any:
    """A new tensor's state, split as the tensor is if that is an array that lies on
    several devices. What has none of its axes is kept on all of them."""
    split = sharding_of(param)
    if split is None:
        return state
    spec = list(split.spec) + [None] * (param.ndim - len(split.spec))

    def one(where: Axes, x: Any) -> Any:
        parts = [None if i is None or i >= len(spec) else spec[i] for i in where.of]
        place = NamedSharding(split.mesh, PartitionSpec(*parts))
        return jax.device_put(x, place)

    shape = jnp.shape(param) or (1,)
    return jax.tree.map(one, axes(init, shape), state, is_leaf=is_axes)
