"""A stored tensor as the tensors a rule sees, and back: what `routing.seen` planned.

The layers of a scan are one array [layers, in, out], an attention kernel may be
[embedding, heads, width], a fused projection [embedding, 3 x width]. A rule is given
`copies` tensors of two axes each, so that its result is that of separate tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core.routing import Seen


def apart(x: Any, seen: Seen) -> list[Any]:
    """The tensors [*seen.shape] in x, which has the stored shape; x itself if the rule
    sees it as it is."""
    if seen.unchanged:
        return [x]
    if seen.split is not None:
        axis, pieces = seen.split
        size = x.shape[axis] // pieces
        x = x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1 :])
    whole = x.transpose(seen.order).reshape(seen.whole)
    return list(whole) if seen.copies is not None else [whole]


def together(tensors: Sequence[Any], seen: Seen, shape: tuple[int, ...]) -> Any:
    """The inverse of `apart`, for a stored tensor of `shape`."""
    if seen.unchanged:
        (only,) = tensors
        return only
    sizes = list(shape)
    if seen.split is not None:
        axis, pieces = seen.split
        sizes[axis : axis + 1] = [pieces, shape[axis] // pieces]
    whole = jnp.stack(tensors) if seen.copies is not None else tensors[0]
    whole = whole.reshape([sizes[a] for a in seen.order])
    return whole.transpose(np.argsort(seen.order)).reshape(shape)


def states_apart(state: Any, seen: Seen) -> list[Any]:
    """The states of the tensors, from one whose arrays are stacked in front."""
    if seen.copies is None:
        return [state]
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(seen.copies)]


def states_together(states: Sequence[Any], seen: Seen) -> Any:
    """The inverse of `states_apart`."""
    if seen.copies is None:
        (only,) = states
        return only
    return jax.tree.map(lambda *xs: jnp.stack(xs), *states)
