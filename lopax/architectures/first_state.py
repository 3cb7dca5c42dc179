"""The first state of a tensor in JAX, from what its rule says it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lopax.rules.form import Keeps, Place


def first_state(keeps: Any, place: Place, starts: Mapping[str, Array]) -> Any:
    """The first state of a tensor; () for what it does not have."""
    found = {
        name: _first(v, place, starts.get(name))
        if v is None or isinstance(v, Keeps)
        else first_state(v, place, starts)
        for name, v in keeps._asdict().items()
    }
    return type(keeps)(**found)


def _first(keeps: Keeps | None, place: Place, start: Any) -> Any:
    """The first value of one array of a tensor's state."""
    if keeps is None or keeps.counts:
        return ()
    axes = keeps.axes(place)
    if axes is None:  # an array of its own: one that is there twice cannot be donated
        return jnp.zeros((0,), jnp.float32)
    lead = (keeps.copies,) if keeps.copies else ()
    tail = (keeps.units,) if keeps.units else ()
    zeros = jnp.zeros((*lead, *(place.shape[a] for a in axes), *tail), jnp.float32)
    if start is None:
        return zeros
    if keeps.copies and keeps.each:
        start = start.reshape((-1, *(1,) * (zeros.ndim - 1)))
    return zeros + start
