"""Several gradients for one step of the rule: long runs in a trained horizon.

A rule meta-trained on runs of 2,000 steps knows nothing of the 100,000th. Averaging
gradients until the run has as many steps as the rule was trained for is what VeLO's
authors did beyond 150,000 steps. `optax.MultiSteps` does the same to gradients, but
hands on the loss of the last batch only and lets one NaN spoil the average.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopax._core import leaves
from lopax._core.errors import StructureMismatch
from lopax._core.lifting import all_finite, own_arithmetic, scalar_loss
from lopax._core.tree import select
from lopax._core.types import Params, Updates
from lopax.optax.states import AccumulationState
from lopax.optax.storage import boxed_as, is_placeholder


def accumulate(
    inner: optax.GradientTransformationExtraArgs, every: int
) -> optax.GradientTransformationExtraArgs:
    """Calls `inner` with the mean gradient and mean `value` of every `every` calls.

    In between the updates are zero. Calls with a non-finite gradient or loss do not
    enter the means; if all of them are such, `inner` gets a non-finite gradient and
    decides. Further keyword arguments are handed on from the last call.
    """

    @own_arithmetic
    def init_fn(params: Params) -> AccumulationState:
        if is_placeholder(params):
            return AccumulationState(inner.init(params), 0, 0, 0, 0, params, 0)  # type: ignore[arg-type]
        return AccumulationState(
            inner.init(params),
            jnp.asarray(every, jnp.int32),
            *(jnp.zeros((), jnp.int32) for _ in range(3)),
            grads=_zeros(params),
            value=jnp.zeros((), jnp.float32),
        )

    @own_arithmetic
    def update_fn(
        updates: Updates,
        state: AccumulationState,
        params: Params | None = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Updates, AccumulationState]:
        if not isinstance(state, AccumulationState):
            raise StructureMismatch(
                "the optimizer's state is not one of an optimizer that accumulates "
                f"gradients (accumulate_beyond) but a {type(state).__name__}: it must "
                "be what opt.init(params) returned"
            )
        like = updates if params is None else params
        value = scalar_loss(value)
        new, mean = (leaves.gradients(like, x) for x in (updates, state.grads))
        finite = all_finite(
            [jnp.asarray(g, jnp.float32) for g in jax.tree.leaves(new)], value
        )
        weight = 1.0 / (state.used + 1).astype(jnp.float32)

        def average(mean: Any, new: Any) -> Any:
            return mean + weight * (jnp.asarray(new, jnp.float32) - mean)

        new_value = state.value if value is None else average(state.value, value)
        grads = select(finite, jax.tree.map(average, mean, new), mean)
        state = state._replace(
            seen=state.seen + 1,
            used=state.used + finite.astype(jnp.int32),
            skipped=state.skipped + (~finite).astype(jnp.int32),
            grads=boxed_as(state.grads, leaves.in_place(like, grads)),
            value=jnp.where(finite, new_value, state.value),
        )

        def step(state: AccumulationState) -> tuple[Updates, AccumulationState]:
            poison = jnp.where(state.used > 0, 0.0, jnp.nan)
            given = jax.tree.map(lambda g: g + poison, grads)
            given = leaves.in_place(like, given)
            loss = {} if value is None else {"value": state.value}
            out, after = inner.update(given, state.inner, params, **loss, **extra)
            out = jax.tree.map(lambda u, p: u.astype(jnp.result_type(p)), out, like)
            zero = jnp.zeros((), jnp.int32)
            return out, state._replace(
                inner=after,
                seen=zero,
                used=zero,
                grads=boxed_as(state.grads, _zeros(like)),
                value=jnp.zeros((), jnp.float32),
            )

        def wait(state: AccumulationState) -> tuple[Updates, AccumulationState]:
            return jax.tree.map(jnp.zeros_like, like), state

        return jax.lax.cond(state.seen >= state.every, step, wait, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # type: ignore[arg-type]


def _zeros(params: Params) -> Updates:
    """float32 (or complex64) zeros, placed as the parameters are."""
    whole = leaves.trained(params)
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), whole)
    return leaves.in_place(params, zeros)
