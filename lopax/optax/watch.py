"""What is said once when a run trains nothing: when, and by which mechanism.

A factor on the steps is known when the optimizer is made. The rest is in the state:
`lopax.info` reads it, and so does the step itself if it is made with `warn=True`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopax._core import suspicions
from lopax._core.errors import ConfigError
from lopax._core.optimizer import LearnedOptimizer, OptState
from lopax._core.places import places_of
from lopax._core.routing import Route
from lopax._core.types import Params
from lopax._core.warned import (
    HorizonWarning,
    SkippedWarning,
    StackWarning,
    StepSizeWarning,
    far_from_one,
    say,
)
from lopax.optax.states import AccumulationState, OptimizerState
from lopax.optax.storage import Kept

STREAK = 10
"""Skipped steps in a row that are worth a word, and first steps without gradients."""

_said: set[Any] = set()


def _first(key: Any) -> bool:
    new = key not in _said
    _said.add(key)
    return new


def rate(name: str, factor: Any, num_steps: Any) -> None:
    """Warns if `lr_multiplier` looks like another optimizer's learning rate: a number
    far from one, or a schedule that is so at the start, a quarter and the half of the
    run. What is traced is not looked at."""
    if callable(factor):
        if not isinstance(num_steps, int):
            return
        with jax.ensure_compile_time_eval():
            counts = (0, num_steps // 4, num_steps // 2)
            values = [jnp.asarray(factor(jnp.asarray(n))) for n in counts]
        if any(x.size != 1 for x in values):
            raise ConfigError(
                f"lr_multiplier: the schedule gives an array of shape {values[0].shape}"
                ": must be one number"
            )
        factor = max(abs(float(x)) for x in values)
    if isinstance(factor, (int, float)) and far_from_one(factor):
        say(
            f"lr_multiplier = {factor:g}: it is a factor on every step of {name!r}, "
            "not a learning rate, and 1.0 is what the rule was trained for. Leave it "
            "out, or tune it around 1.",
            StepSizeWarning,
        )


def at_the_start(
    opt: optax.GradientTransformationExtraArgs,
    rule: LearnedOptimizer,
    factor: Any,
    bundled: bool,
    routes: Sequence[Route],
) -> optax.GradientTransformationExtraArgs:
    """`opt`, whose `init` warns of tensors that the rule is about to take for something
    else: layers in one array without a route, and attention under weights whose steps
    are too large for it.

    **Arguments:**

    - `factor`: on the steps, as the user has it.
    - `bundled`: whether theta is the bundled one.
    """
    stacks = rule.sees_tensors and not any(r.stack_axes for r in routes)
    suggested = suspicions.ATTENTION_FACTORS.get(rule.name) if bundled else None
    if not isinstance(factor, (int, float)) or factor != 1.0:
        suggested = None

    def init_fn(params: Params) -> Any:
        state = opt.init(params)
        if stacks or suggested:
            shapes = {leaf.name: leaf.shape for leaf in places_of(params)}
            stack = suspicions.stack_in(shapes) if stacks else None
            if stack is not None and _first(("stack", rule.name, stack)):
                say(suspicions.of_stack(rule.name, stack), StackWarning)
            part = suspicions.attention_in(shapes) if suggested else None
            if part and _first(("attention", rule.name)):
                text = suspicions.of_attention(rule.name, part, "lr_multiplier")
                say(text, StepSizeWarning)
        return state

    return optax.GradientTransformationExtraArgs(init_fn, opt.update)


def past_the_end(step: int, num_steps: int) -> None:
    """Warns, once for a length, if `step` is past it; 0: there is none."""
    if num_steps and step > num_steps and _first(("end", num_steps)):
        say(
            f"step {step} of a run of {num_steps}: the optimizer keeps the end of its "
            "schedule. lopax.extend(state, num_steps) makes the run longer.",
            HorizonWarning,
        )


def skipped_in_a_row(count: int, what: str) -> None:
    """Warns of `count` skipped steps, if they are ten or more, once for a power of
    ten."""
    if count >= STREAK and _first(("skipped", what, int(math.log10(count)))):
        say(
            f"{count} steps in a row were skipped and changed nothing: {what} is not "
            "finite.",
            SkippedWarning,
        )


def without_gradients(idle: int, steps: int, place: str = "") -> None:
    """Warns, once for a place in the tree of states, if `idle` steps found no gradient
    other than zero, and these are all steps there were, ten or more."""
    if idle == steps >= STREAK and _first(("idle", place)):
        where = f" under {place!r}" if place else ""
        say(
            f"in the first {steps} steps the gradients of all weight matrices{where} "
            "(where there is none, of all parameters) were exactly zero, so that none "
            "is trained. Is the loss cut off from them (stop_gradient, a loss of other "
            "parameters), do several layers in a row start at zero, or did gradients "
            "underflow in half precision?",
            SkippedWarning,
        )


def what(state: Any, flaw: int) -> str:
    """The tensor (or the loss) that `OptimizerState.flaw` means."""
    if isinstance(state, AccumulationState):
        state = state.inner
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, OptState))
    names = [_names(x) for x in leaves if isinstance(x, OptState)]
    if flaw < 0:
        return "what the rule makes of loss and gradients"
    if names and flaw < len(names[0]):
        return f"the gradient of {names[0][flaw]!r}"
    return "a factor on the step, or the loss"


def _names(state: OptState) -> list[str]:
    """Of its tensors, in the order of the rule."""
    kept = state.tensors
    return sorted(kept.rest if isinstance(kept, Kept) else kept)


def in_the_step(state: OptimizerState) -> None:
    """Makes a traced step call the host where there is something to say."""
    (rule,) = (
        x
        for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, OptState))
        if isinstance(x, OptState)
    )
    step, end, row = rule.iteration, rule.num_steps, state.in_a_row
    idle, count = state.idle, state.count
    due = ((end > 0) & (step == end + 1)) | (row == STREAK) | (row == 10 * STREAK)
    due = due | ((idle == count) & (idle == STREAK))

    def tell(step: Any, end: Any, row: Any, flaw: Any, idle: Any, count: Any) -> None:
        past_the_end(int(step), int(end))
        skipped_in_a_row(int(row), labels[int(flaw) + 1])
        without_gradients(int(idle), int(count))

    labels = [what(state, i) for i in range(-1, len(_names(rule)) + 1)]
    jax.lax.cond(
        due,
        lambda *args: jax.debug.callback(tell, *args),
        lambda *args: None,
        *(step, end, row, state.flaw, idle, count),
    )
