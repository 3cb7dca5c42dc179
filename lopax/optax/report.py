"""What an optimizer has been doing, as numbers to log: `lopax.info`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lopax._core import tree as trees
from lopax._core.errors import ConfigError
from lopax._core.lifting import rms
from lopax._core.optimizer import Info, OptState
from lopax._core.types import Params, Updates
from lopax.optax import watch
from lopax.optax.states import AccumulationState, OptimizerState, Report


def empty(params: Params) -> Report:
    """Before the first step."""

    def zeros() -> Any:
        return jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)

    return Report(jnp.zeros((), jnp.int32), zeros(), zeros())


def of(updates: Updates, params: Params, found: Info) -> Report:
    """Of final updates, with weight decay and the user's multiplier in them."""

    def size(x: Any) -> Any:
        return rms(jnp.asarray(x, jnp.float32))

    update_rms = jax.tree.map(size, updates)
    ratio = jax.tree.map(lambda u, p: u / (size(p) + 1e-12), update_rms, params)
    return Report(jnp.asarray(found.clipped, jnp.int32), update_rms, ratio)


def info(state: Any) -> dict[str, float]:
    """A flat dict of floats to log, from any pytree with lopax states in it.

    Always: `step` (updates made), `skipped` (those not made because of a non-finite
    loss or gradient) and `step_scale` (the rule's own learning rate: for Celo its
    scheduler's value). If the rule was given a horizon: `num_steps` and
    `fraction_done` (what the rule is told, at most 1). From `lopax.optimizer` also
    `skipped_in_a_row`. With
    `lopax.optimizer(..., report=True)`, of the last step: `clipped` (gradient
    elements), and for each tensor `update_rms/<path>` (its effective step size) and
    `update_to_weight/<path>`. With accumulation: `gradients_per_step` and
    `skipped_gradients`. If there are several lopax states (`multi_transform`), names
    begin with the place of each in the tree.

    To be called outside `jit`; it waits for the state and copies it in one go. Warns,
    once each, if the run is past `num_steps` (`HorizonWarning`), if ten or more steps
    in a row were skipped (`SkippedWarning`, which names the tensor), and if the first
    ten or more found no gradient other than zero at any matrix (`SkippedWarning`). The
    step itself does not, unless made with `warn=True`: a callback in it would keep the
    program out of JAX's compilation cache and cost every device a call to the host.

    Raises `ConfigError` if there is no lopax state, if it is traced, or batched.
    """
    groups = list(_groups(state))
    if not groups:
        raise ConfigError(
            f"info: there is no state of a lopax optimizer in {type(state).__name__}"
        )
    found: dict[str, Any] = {}
    for place, node in groups:
        prefix = f"{place}/" if len(groups) > 1 and place else ""
        found |= {prefix + key: x for key, x in _values(node).items()}
    if any(isinstance(x, Tracer) for x in found.values()):
        raise ConfigError("info: call it outside jit, on the state a step returned")
    if any(np.ndim(x) for x in found.values()):
        raise ConfigError(
            "info: the state is batched or replicated along a leading axis; take one "
            "of it first: jax.tree.map(lambda x: x[0], state)"
        )
    numbers = {key: float(x) for key, x in jax.device_get(found).items()}
    for key in [k for k in numbers if k.endswith("num_steps") and not numbers[k]]:
        del numbers[key], numbers[key.removesuffix("num_steps") + "fraction_done"]
    for place, node in groups:
        prefix = f"{place}/" if len(groups) > 1 and place else ""
        flaw = numbers.pop(prefix + _FLAW, None)
        if flaw is not None:
            streak = int(numbers[prefix + "skipped_in_a_row"])
            watch.skipped_in_a_row(streak, watch.what(node, int(flaw)))
            idle, steps = (int(numbers.pop(prefix + key)) for key in (_IDLE, _CALLS))
            watch.without_gradients(idle, steps, place)
    for key, horizon in numbers.items():
        if key.endswith("num_steps"):
            step = numbers[key.removesuffix("num_steps") + "step"]
            watch.past_the_end(int(step), int(horizon))
    return numbers


_FLAW, _IDLE, _CALLS = "flaw", "idle", "calls"  # but not for the user


_STATES = (AccumulationState, OptimizerState, OptState)


def _is_state(x: Any) -> bool:
    return isinstance(x, _STATES)


def _groups(state: Any) -> Any:
    """Place and node of every outermost lopax state."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_state):
        if _is_state(node):
            yield trees.path_name(path), node


def _values(node: Any) -> dict[str, Any]:
    if isinstance(node, OptState):
        horizon = jnp.maximum(node.num_steps, 1)
        return {
            "step": node.iteration,
            "num_steps": node.num_steps,
            "fraction_done": jnp.minimum(node.iteration / horizon, 1.0),
            "skipped": node.skipped,
        }
    if isinstance(node, AccumulationState):
        inner = _values(next(x for _, x in _groups(node.inner)))
        return inner | {
            "gradients_per_step": node.every,
            "skipped_gradients": node.skipped,
        }
    values = {}
    for _, rule in _groups(node.rule):
        values |= _values(rule)
    values["step_scale"] = node.step_scale
    values["skipped_in_a_row"] = node.in_a_row
    values |= {_FLAW: node.flaw, _IDLE: node.idle, _CALLS: node.count}
    if isinstance(node.report, Report):
        values["clipped"] = node.report.clipped
        for field in ("update_rms", "update_to_weight"):
            for name, x in trees.named_leaves(getattr(node.report, field)).items():
                values[f"{field}/{name}"] = x
    return values
