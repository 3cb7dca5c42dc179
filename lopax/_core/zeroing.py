"""Steps that are taken back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.types import Flag


def zero_unless(
    made: Flag, steps: Sequence[Any], in_place: Sequence[bool]
) -> list[Any]:
    """The steps [tensors] if `made` [], else zeros of their shapes and dtypes.

    **Arguments:**

    - `in_place`: which of them lie in memory already, as a kernel wrote them: choosing
        would be a pass over it. The others XLA chooses while it makes them.
    """
    kept = [d for d, lies in zip(steps, in_place, strict=True) if lies]
    if kept and jax.default_backend() == "cpu":  # a GPU would wait for the flag
        kept = iter(_replaced_by_zero(made, kept))
    else:
        kept, in_place = iter(()), [False] * len(steps)
    return [
        next(kept) if lies else jnp.where(made, d, jnp.zeros((), d.dtype))
        for d, lies in zip(steps, in_place, strict=True)
    ]


@jax.custom_jvp
def _replaced_by_zero(made: Flag, steps: list[Any]) -> list[Any]:
    """A loop, of no or one round, because XLA runs it in place."""
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    loop = jax.lax.while_loop(
        lambda carry: ~carry[0],
        lambda carry: (jnp.ones_like(carry[0]), zeros(carry[1])),
        (made, steps),
    )
    return loop[1]


@_replaced_by_zero.defjvp
def _replaced_by_zero_jvp(primals: Any, tangents: Any) -> Any:
    made, steps = primals
    moved = [jnp.where(made, t, 0.0) for t in tangents[1]]
    return _replaced_by_zero(made, steps), moved
