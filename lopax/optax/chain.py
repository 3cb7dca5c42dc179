"""From a rule to an optax transformation: the rule, then what the user adds to it.

A step of the rule is a `Made`; links of a chain make another of it (`links.Decay`,
`links.Multiply`). Around them `from_rule` keeps the state as optax and Flax want it,
and accumulates gradients where a run is longer than the rule can be trusted with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopax._core import leaves, lifting
from lopax._core import tree as trees
from lopax._core.errors import (
    ConfigError,
    LopaxError,
    MissingHorizon,
    MissingParams,
    StructureMismatch,
)
from lopax._core.numbers import check_factor, is_real
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.routing import Route
from lopax._core.types import Params, Theta, Updates
from lopax.blocks import narrow_momenta
from lopax.optax import report as reports
from lopax.optax import watch
from lopax.optax.accumulation import accumulate
from lopax.optax.links import Decay, Made, Multiply
from lopax.optax.states import OptimizerState, Report
from lopax.optax.storage import Storage, by_name, in_place, is_placeholder


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
    if not callable(lr_multiplier):
        check_factor("lr_multiplier", lr_multiplier, negative=True)
    watch.rate(rule.name, lr_multiplier, num_steps)
    if num_steps is not None:
        lifting.horizon(num_steps)
    check_factor("weight_decay", weight_decay)
    every = _gradients_per_step(num_steps, accumulate_beyond)
    if every > 1 and num_steps is not None:
        num_steps = num_steps // every
    links = (Decay(weight_decay, mask), Multiply(lr_multiplier, every))
    base = _chained(rule, theta, num_steps, momentum_dtype, links, report, warn)
    return base if every == 1 else accumulate(base, every)


def _chained(
    rule: LearnedOptimizer,
    theta: Theta,
    num_steps: Any,
    momentum_dtype: str,
    links: Sequence[Decay | Multiply],
    report: bool,
    warn: bool,
) -> optax.GradientTransformationExtraArgs:
    """The rule and the links, with the state of `lopax.optimizer`."""
    narrow = narrow_momenta.choose(rule, momentum_dtype)
    storage = Storage(rule, theta, narrow.apart)

    @lifting.own_arithmetic
    def init_fn(params: Params) -> OptimizerState:
        if is_placeholder(params):
            nothing = Report(0, 0, 0) if report else ()  # type: ignore[arg-type]
            return OptimizerState(storage.placeholder(params), 0, 0, 0, 0, 0, nothing)  # type: ignore[arg-type]
        named = by_name(params, leaves.trained(params))
        return OptimizerState(
            rule=storage.fresh(
                narrow.start(rule.init(theta, named, num_steps), named), params
            ),
            count=jnp.zeros((), jnp.int32),
            step_scale=jnp.zeros((), jnp.float32),
            in_a_row=jnp.zeros((), jnp.int32),
            flaw=jnp.zeros((), jnp.int32),
            idle=jnp.zeros((), jnp.int32),
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
        if not isinstance(state, OptimizerState):
            raise StructureMismatch(_FOREIGN.format(rule.name, type(state).__name__))
        try:
            return step(updates, state, params, **extra)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if not isinstance(error, LopaxError):
                _compare(rule.name, jax.eval_shape(init_fn, params), state, error)
            raise

    def step(
        updates: Updates, state: OptimizerState, params: Params, **extra: Any
    ) -> tuple[Updates, OptimizerState]:
        named = by_name(params, leaves.trained(params))
        grads = by_name(params, leaves.gradients(params, updates))
        stored = storage.unpack(state.rule, params)
        kept = narrow.unpack(stored)
        factors = [link.factor_at(state.count) for link in links]
        if extra.get("value") is not None or not rule.needs_loss:
            extra["value"] = _unless_finite(extra.get("value"), factors)
        moves, rule_state, found = rule.update(theta, grads, kept, named, **extra)
        scale = jnp.asarray(found.step_scale, jnp.float32)
        made = Made.of(moves, params, named, state.count, scale, found.skipped)
        for link, factor in zip(links, factors, strict=True):
            made = link(made, factor)
        moves = made.as_given(moves)
        packed = narrow.pack(rule_state, named)
        if hasattr(stored, "tensors"):
            held = narrow.hold(found.skipped, stored.tensors, packed.tensors)
            packed = packed._replace(tensors=held)
        after = OptimizerState(
            rule=storage.pack(packed, params, state.rule),
            count=state.count + 1,
            step_scale=jnp.where(found.skipped, state.step_scale, scale),
            in_a_row=jnp.where(found.skipped, state.in_a_row + 1, 0),
            flaw=jnp.where(found.skipped, found.flaw, state.flaw),
            idle=state.idle + (found.idle & (state.idle == state.count)),
            report=reports.of(moves, named, found) if report else (),
        )
        if warn:
            watch.in_the_step(after)
        return in_place(params, moves), after

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # type: ignore[arg-type]


def _unless_finite(value: Any, factors: Sequence[Any]) -> Any:
    """The loss, not finite if a factor of this step is not, so that it is skipped."""
    value = lifting.scalar_loss(value)
    for factor in factors:
        if not is_real(factor):  # one that is was checked when the optimizer was made
            known = jnp.zeros((), jnp.float32) if value is None else value
            value = known + 0.0 * jnp.reshape(factor, ()).astype(jnp.float32)
    return value


_FOREIGN = (
    "the optimizer's state is not one of {!r} but a {}: it must be what "
    "opt.init(params) or opt.update(...) returned. A file is read into such a state if "
    "the reader is given opt.init(params) as its target."
)


def _compare(name: str, expected: Any, state: Any, error: Exception) -> None:
    """Raises `StructureMismatch` if a step failed for being from a foreign state."""
    what = f"the optimizer's state, of a rule that is to be {name!r},"
    fix = "Was it saved by another rule, or with other settings?"
    want, have = trees.describe(expected), trees.describe(state)
    if want != have:
        raise StructureMismatch.between(what, want, have, fix) from error
    if jax.tree.structure(expected) != jax.tree.structure(state):
        raise StructureMismatch(f"{what} has other nodes: {error}\n{fix}") from error


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
