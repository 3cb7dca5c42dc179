"""Averages of the parameters, kept beside an optimizer and read out at the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lopax._core.types import Params

AVERAGES = ("exponential", "uniform", "polynomial")
POWER = 8.0
"""Of the polynomial average; DoG's authors' value (Ivgi et al., 2023)."""


class AveragedState(NamedTuple):
    """An optimizer's state beside an average of what it made of the parameters."""

    inner: Any
    average: Params
    count: Any  # [] int32


def averaged(
    optimizer: optax.GradientTransformation,
    kind: str,
    num_steps: int,
    window: float = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` with an average of the parameters after each update.

    **Arguments:**

    - `kind`: "exponential", with a decay of 1 - 1 / (window x num_steps), corrected at
      the start; "uniform", of the last `window` of the run; "polynomial", of all of
      it, weighted by about t^8.
    - `window`: share of the run.
    """
    inner = optax.with_extra_args_support(optimizer)
    length = max(1.0, window * num_steps)

    def weight(t: Any) -> Any:
        """Of the newest parameters, after `t` >= 1 updates."""
        if kind == "polynomial":
            return (1.0 + POWER) / (t + POWER)
        if kind == "uniform":
            return 1.0 / jnp.maximum(1.0, t - (num_steps - length))
        decay = 1.0 - 1.0 / length
        return (1.0 - decay) / (1.0 - decay**t)

    def init(params: Params) -> AveragedState:
        return AveragedState(inner.init(params), params, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        updates, inside = inner.update(updates, state.inner, params, **extra)
        count = state.count + 1
        share = weight(count.astype(jnp.float32))
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda a, p: (a + share * (p - a)).astype(a.dtype), state.average, after
        )
        return updates, AveragedState(inside, average, count)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def averaged_params(state: Any, params: Params) -> Params:
    """The average that `averaged` keeps."""
    del params
    return _find(state, AveragedState).average


def schedule_free_params(state: Any, params: Params) -> Params:
    """Schedule-free methods are evaluated at the average of their iterates."""
    return contrib.schedule_free_eval_params(
        _find(state, contrib.ScheduleFreeState), params
    )


def _find(state: Any, kind: type) -> Any:
    is_kind = lambda s: isinstance(s, kind)  # noqa: E731
    return next(s for s in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(s))
