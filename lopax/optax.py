"""Learned optimizers as optax transformations: `lopax.optimizer`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopax._core.errors import ConfigError, MissingHorizon, MissingParams
from lopax._core.optimizer import Info, LearnedOptimizer
from lopax._core.types import Params, Theta, Updates
from lopax.architectures import architecture
from lopax.pretrained.index import read_weights
from lopax.theta import bundled_weights, load_optimizer


class OptimizerState(NamedTuple):
    """State of `lopax.optimizer`: the rule's own, and the report of the last step."""

    rule: Any
    count: Any  # [] int32, for schedules of lr_multiplier


def optimizer(
    name: str,
    *,
    num_steps: Any = None,
    theta: Theta | None = None,
    weights: str | os.PathLike[str] | None = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    lr_multiplier: float | optax.Schedule = 1.0,
    **config: Any,
) -> optax.GradientTransformationExtraArgs:
    """A pretrained learned optimizer, to be used wherever optax is.

        opt = lopax.optimizer("celo", num_steps=2_000)
        state = opt.init(params)
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = opt.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)

    **Arguments:**

    - `name`: an architecture, see `lopax.list_optimizers()`.
    - `num_steps`: how many updates the run will make. Rules that follow the fraction
        of training done (Celo, VeLO) need it; it may be left out for the others.
    - `theta`: meta-parameters in memory; or
    - `weights`: a weights file or the name of bundled weights. Default: the bundled
        weights of this architecture.
    - `weight_decay`: decoupled; each step removes `weight_decay` times the rule's own
        step scale (for Celo 0.001 times its schedule) of each parameter, so that
        values customary for AdamW fit.
    - `mask`: a pytree of bools, or a function from parameters to one, saying which
        parameters decay. Default: all.
    - `lr_multiplier`: a factor on every update, or an optax schedule of it.
    - `config`: settings of the architecture, over those saved with the weights.

    Raises `UnknownName`, `MissingHorizon`, `ConfigError`, `StructureMismatch`; the
    update raises `MissingLoss` / `MissingParams` when they are needed and not given.
    """
    if theta is not None and weights is not None:
        raise ConfigError("give theta= or weights=, not both")
    if theta is not None:
        rule = architecture(name, **config)
        theta = rule.theta_from_arrays(rule.theta_to_arrays(theta))
    else:
        architecture(name)  # an unknown name is reported as such
        file = bundled_weights(name) if weights is None else read_weights(weights)
        rule, theta = load_optimizer(file, name, config)
    return from_rule(
        rule,
        theta,
        num_steps=num_steps,
        weight_decay=weight_decay,
        mask=mask,
        lr_multiplier=lr_multiplier,
    )


def from_rule(
    rule: LearnedOptimizer,
    theta: Theta,
    *,
    num_steps: Any = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    lr_multiplier: float | optax.Schedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` for an architecture object and its meta-parameters."""
    if num_steps is None and rule.needs_horizon:
        raise MissingHorizon(rule.name)
    if isinstance(num_steps, (int, float)) and num_steps < 1:
        raise ConfigError(f"num_steps = {num_steps}: must be at least 1")
    if isinstance(weight_decay, (int, float)) and weight_decay < 0:
        raise ConfigError(f"weight_decay = {weight_decay}: must be >= 0")

    def init_fn(params: Params) -> OptimizerState:
        state = rule.init(theta, params, num_steps)
        return OptimizerState(state, jnp.zeros((), jnp.int32))

    def update_fn(
        updates: Updates,
        state: OptimizerState,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Updates, OptimizerState]:
        if params is None:
            raise MissingParams(rule.name)
        updates, rule_state, info = rule.update(
            theta, updates, state.rule, params, **extra
        )
        factor = (
            lr_multiplier(state.count) if callable(lr_multiplier) else lr_multiplier
        )
        updates = _finish(updates, params, info, factor, weight_decay, mask)
        return updates, OptimizerState(rule_state, state.count + 1)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # type: ignore[arg-type]


def _finish(
    updates: Updates,
    params: Params,
    info: Info,
    factor: Any,
    weight_decay: Any,
    mask: Any,
) -> Updates:
    """Weight decay and the user's multiplier, computed in float32."""
    if isinstance(weight_decay, (int, float)) and weight_decay == 0.0:
        decays = jax.tree.map(lambda _: False, params)
    elif mask is None:
        decays = jax.tree.map(lambda _: True, params)
    else:
        decays = mask(params) if callable(mask) else mask
    rate = jnp.where(info.skipped, 0.0, weight_decay * info.step_scale)

    def one(update: Any, param: Any, decay: bool) -> Any:
        step = update.astype(jnp.float32)
        if decay:
            step = step - rate * param.astype(jnp.float32)
        return (factor * step).astype(update.dtype)

    return jax.tree.map(one, updates, params, decays)
