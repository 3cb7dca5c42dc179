"""`lopax.optimizer` and `lopax.scale_by`: a rule and its theta, as optax wants them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopax._core import leaves, lifting
from lopax._core import tree as trees
from lopax._core.errors import (
    ConfigError,
    MissingHorizon,
    MissingParams,
    StructureMismatch,
)
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.routing import Route
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Params, Theta, Updates
from lopax.architectures import architecture
from lopax.blocks import narrow_momenta
from lopax.optax import report as reports
from lopax.optax import watch
from lopax.optax.accumulation import accumulate
from lopax.optax.states import OptimizerState, Report
from lopax.optax.storage import Storage, by_name, in_place, is_placeholder
from lopax.pretrained.index import read_weights
from lopax.theta import bundled_weights, load_optimizer


def optimizer(
    name: str,
    *,
    num_steps: Any = None,
    theta: Theta | None = None,
    weights: str | os.PathLike[str] | None = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    lr_multiplier: float | optax.Schedule = 1.0,
    accumulate_beyond: int | None = None,
    momentum_dtype: str = "float32",
    routes: Sequence[Route] = (),
    report: bool = False,
    warn: bool = False,
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
        of training done (Celo, VeLO, Celo2 with a schedule) need it; it may be left
        out for the others.
        `lopax.extend` changes it later.
    - `theta`: meta-parameters in memory; or
    - `weights`: a weights file or the name of bundled weights. Default: the bundled
        weights of this architecture.
    - `weight_decay`: decoupled; each step removes `weight_decay` times the rule's own
        step scale (for Celo 0.001 times its schedule) of each parameter, so that
        values customary for AdamW fit.
    - `mask`: a pytree of bools, or a function from parameters to one, saying which
        parameters decay. Default: all.
    - `lr_multiplier`: a factor on every update, or an optax schedule of it.
    - `accumulate_beyond`: the longest run the rule can be trusted with. If `num_steps`
        is larger, ceil(num_steps / accumulate_beyond) gradients and losses are
        averaged for every step of the rule; in between, the updates are zero.
    - `momentum_dtype`: "float32" or "bfloat16", what momenta are kept in.
    - `routes`: `lopax.Route`s that say which axes of a tensor are a stack of layers or
        experts and which belong to the output, and for rules with roles the role.
    - `report`: keep per-tensor diagnostics of the last step in the state, for
        `lopax.info`. Costs one more pass over gradients, parameters and updates.
    - `warn`: let the step itself call the host and warn (`lopax.LopaxWarning`) past
        the end and after ten skipped steps in a row. Such a program is not kept in
        JAX's compilation cache. Without it, `lopax.info` says so.
    - `config`: settings of the architecture, over those saved with the weights.

    Raises `UnknownName`, `MissingHorizon`, `ConfigError`, `StructureMismatch`; the
    update raises `MissingLoss` / `MissingParams` when they are needed and not given.
    """
    rule, theta = _load(name, theta, weights, config)
    return from_rule(
        rule,
        theta,
        num_steps=num_steps,
        weight_decay=weight_decay,
        mask=mask,
        lr_multiplier=lr_multiplier,
        accumulate_beyond=accumulate_beyond,
        momentum_dtype=momentum_dtype,
        routes=routes,
        report=report,
        warn=warn,
    )


def scale_by(
    name: str,
    *,
    num_steps: Any = None,
    theta: Theta | None = None,
    weights: str | os.PathLike[str] | None = None,
    momentum_dtype: str = "float32",
    routes: Sequence[Route] = (),
    **config: Any,
) -> optax.GradientTransformationExtraArgs:
    """The rule's direction alone, for a chain of one's own; as `optax.scale_by_adam`
    it points uphill and knows neither weight decay nor a learning rate.

        opt = optax.chain(
            lopax.scale_by("celo", num_steps=2_000),
            optax.add_decayed_weights(1e-5),
            optax.scale_by_learning_rate(1.0),
        )

    Unlike Adam's, the direction has the rule's own size (and Celo's own schedule) in
    it, so that 1.0 is the learning rate to start from. Arguments and errors as for
    `optimizer`.
    """
    rule, theta = _load(name, theta, weights, config)
    return from_rule(
        rule,
        theta,
        num_steps=num_steps,
        momentum_dtype=momentum_dtype,
        routes=routes,
        lr_multiplier=-1.0,
    )


def roles(
    name: str,
    params: Params,
    *,
    weights: str | os.PathLike[str] | None = None,
    routes: Sequence[Route] = (),
    **config: Any,
) -> dict[str, str]:
    """What `optimizer(name, routes=routes, ...)` takes each tensor for, by its path.

        lopax.roles("celo2", params)  # {"embedding": "adam", "dense/w": "orthogonal"}

    Empty for rules that treat all tensors alike. Arguments and errors as for
    `optimizer`.
    """
    rule = _load(name, None, weights, config)[0].routed(routes)
    if not isinstance(rule, TensorRule) or not rule.roles:
        return {}
    named = by_name(params, leaves.trained(params))
    return {
        leaf.name: rule.role(lifting.seen_as(leaf, rule.view(leaf.name, leaf.shape)))
        for leaf in lifting.places(named)
    }


def from_rule(
    rule: LearnedOptimizer,
    theta: Theta,
    *,
    num_steps: Any = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    lr_multiplier: float | optax.Schedule = 1.0,
    accumulate_beyond: int | None = None,
    momentum_dtype: str = "float32",
    routes: Sequence[Route] = (),
    report: bool = False,
    warn: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` for an architecture object and its meta-parameters."""
    if routes:
        rule = rule.routed(routes)
    if num_steps is None and rule.needs_horizon:
        raise MissingHorizon(rule.name)
    watch.rate(rule.name, lr_multiplier, num_steps)
    if num_steps is not None:
        lifting.horizon(num_steps)
    if isinstance(weight_decay, (int, float)) and weight_decay < 0:
        raise ConfigError(f"weight_decay = {weight_decay}: must be >= 0")
    every = _gradients_per_step(num_steps, accumulate_beyond)
    if every > 1 and num_steps is not None:
        num_steps = num_steps // every
    narrow = narrow_momenta.choose(rule, momentum_dtype)
    storage = Storage(rule, theta)

    @lifting.own_arithmetic
    def init_fn(params: Params) -> OptimizerState:
        if is_placeholder(params):
            nothing = Report(0, 0, 0) if report else ()  # type: ignore[arg-type]
            return OptimizerState(storage.placeholder(params), 0, 0, 0, 0, nothing)  # type: ignore[arg-type]
        named = by_name(params, leaves.trained(params))
        return OptimizerState(
            rule=storage.fresh(narrow.pack(rule.init(theta, named, num_steps)), params),
            count=jnp.zeros((), jnp.int32),
            step_scale=jnp.zeros((), jnp.float32),
            in_a_row=jnp.zeros((), jnp.int32),
            flaw=jnp.zeros((), jnp.int32),
            report=reports.empty(named) if report else (),
        )

    @lifting.own_arithmetic
    def update_fn(
        updates: Updates,
        state: OptimizerState,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Updates, OptimizerState]:
        if params is None:
            raise MissingParams(rule.name)
        named = by_name(params, leaves.trained(params))
        grads = by_name(params, leaves.gradients(params, updates))
        kept = narrow.unpack(storage.unpack(state.rule, params))
        moves, rule_state, found = rule.update(theta, grads, kept, named, **extra)
        factor = lr_multiplier
        if callable(factor):
            factor = factor(state.count * every)
        scale = jnp.asarray(found.step_scale, jnp.float32)
        rate = jnp.where(found.skipped, 0.0, weight_decay * scale)
        decays = _decaying(weight_decay, mask, params)
        moves = {
            name: _finish(move, named[name], factor, rate if decays[name] else None)
            for name, move in moves.items()
        }
        after = OptimizerState(
            rule=storage.pack(narrow.pack(rule_state), params, state.rule),
            count=state.count + 1,
            step_scale=jnp.where(found.skipped, state.step_scale, scale),
            in_a_row=jnp.where(found.skipped, state.in_a_row + 1, 0),
            flaw=jnp.where(found.skipped, found.flaw, state.flaw),
            report=reports.of(moves, named, found) if report else (),
        )
        if warn:
            watch.in_the_step(after)
        return in_place(params, moves), after

    base = optax.GradientTransformationExtraArgs(init_fn, update_fn)  # type: ignore[arg-type]
    return base if every == 1 else accumulate(base, every)


def _load(
    name: str,
    theta: Theta | None,
    weights: str | os.PathLike[str] | None,
    config: dict[str, Any],
) -> tuple[LearnedOptimizer, Theta]:
    """The architecture and its meta-parameters, from memory, a file or the bundle."""
    # `optax.inject_hyperparams` hands **config on as one argument of that name.
    config = {**config.pop("config", {}), **config}
    if theta is not None and weights is not None:
        raise ConfigError("give theta= or weights=, not both")
    if theta is not None:
        rule = architecture(name, **config)
        return rule, rule.theta_from_arrays(rule.theta_to_arrays(theta))
    architecture(name)  # an unknown name is reported as such
    file = bundled_weights(name) if weights is None else read_weights(weights)
    return load_optimizer(file, name, config)


def _gradients_per_step(num_steps: Any, limit: int | None) -> int:
    if limit is None:
        return 1
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(
            f"accumulate_beyond = {limit!r}: must be a whole number of at least 1"
        )
    if not isinstance(num_steps, int):
        raise ConfigError(
            "accumulate_beyond needs num_steps as a plain number, because it decides "
            f"what the state consists of; num_steps = {num_steps!r}"
        )
    return math.ceil(num_steps / limit)


def _decaying(weight_decay: Any, mask: Any, params: Params) -> dict[str, Any]:
    """Which tensors decay, by name. Raises `StructureMismatch`."""
    whole = leaves.trained(params)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0.0:
        mask = False
    elif mask is None:
        mask = True
    elif callable(mask):
        mask = mask(params)
    flags = _broadcast(leaves.unbox(mask), whole)
    return by_name(params, jax.tree.structure(whole).unflatten(flags))


def _broadcast(mask: Any, tree: Any) -> list[Any]:
    """An entry of `mask`, a prefix of `tree`, for each leaf of `tree`. What stands in
    the place of nodes without leaves (`optax.MaskedNode`) does not matter."""
    count = len(jax.tree.leaves(tree))
    if count == 0 or isinstance(mask, (bool, np.bool_)) or trees.is_array(mask):
        return [mask] * count
    parts, tree_kind = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    entries, mask_kind = jax.tree.flatten(mask, is_leaf=lambda x: x is not mask)
    if tree_kind != mask_kind or entries == [mask]:
        raise StructureMismatch(
            "mask: it must be a tree of bools like the parameters, or a prefix of "
            f"one, or a function from parameters to one; {mask!r} stands for "
            f"{trees.describe(tree)}"
        )
    return [
        flag for m, t in zip(entries, parts, strict=True) for flag in _broadcast(m, t)
    ]


def _finish(move: Any, param: Any, factor: Any, rate: Any) -> Any:
    """The user's multiplier and weight decay (None: not this tensor), in float32."""
    step = move.astype(jnp.float32)
    if rate is not None:
        step = step - rate * param.astype(jnp.float32)
    return (factor * step).astype(move.dtype)
