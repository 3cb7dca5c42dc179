"""What an optimizer costs: milliseconds a step and bytes of state a parameter.

Measured on one trajectory, alone, because that is how it is used; the times of the
vmapped runs say nothing about that. Times are of this machine and this task. Adam's
step is timed in turn with the optimizer's, several times; their ratio holds on a busy
machine too, roughly, and how busy it was is kept with it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopax._core.machine import usable_cores
from lopax._core.task import Task
from lopax._core.tree import count_bytes, count_elements, split_arrays
from lopax._core.types import Theta
from lopax.evaluate.baselines import baseline
from lopax.evaluate.runs import programs
from lopax.evaluate.runs.run import wait
from lopax.evaluate.specs import OptimizerSpec


class Cost(NamedTuple):
    """One optimizer on one task."""

    step_ms: float  # loss, gradient and update; the best of the rounds
    ratio: float  # over Adam's step, timed in turn; the median of the rounds
    spread: float  # of the rounds' ratios: highest less lowest, over the median
    load: float  # other processes that wanted to run, per core, at the start
    parameters: int
    state_bytes: int
    bytes_per_parameter: float
    device: str


def measure(
    spec: OptimizerSpec,
    task: Task,
    num_steps: int,
    *,
    seconds: float = 0.2,
    repeats: int = 3,
) -> Cost:
    """Times training steps after compilation, in turn with Adam's, so that a busy
    machine slows both; `seconds` is the length of a repeat."""
    load = other_load()
    arrays, rebuild = split_arrays(task)
    adam = baseline("adam")
    alone = spec.identity == adam.identity
    clocks = [
        _clock(s, rebuild, arrays, num_steps, seconds)
        for s in ((spec,) if alone else (spec, adam))
    ]
    rounds = np.asarray([[clock() for clock in clocks] for _ in range(repeats)])
    ratios = rounds[:, 0] / rounds[:, -1]
    shapes = jax.eval_shape(
        lambda key: spec.transformation(num_steps, jnp.float32(1e-3)).init(
            task.init(key)[0]
        ),
        jax.random.key(0),
    )
    params = jax.eval_shape(lambda key: task.init(key)[0], jax.random.key(0))
    count, state_bytes = count_elements(params), count_bytes(shapes)
    return Cost(
        step_ms=1e3 * float(rounds[:, 0].min()),
        ratio=float(np.median(ratios)),
        spread=float(np.ptp(ratios) / np.median(ratios)),
        load=load,
        parameters=count,
        state_bytes=state_bytes,
        bytes_per_parameter=state_bytes / max(count, 1),
        device=device_name(),
    )


def _clock(
    spec: OptimizerSpec,
    rebuild: Callable[[list[Any]], Task],
    arrays: list[Any],
    num_steps: int,
    seconds: float,
) -> Callable[[], float]:
    """A function that trains for about `seconds` and returns those of one step."""
    rates = spec.learning_rates or (1e-3,)
    rate = math.sqrt(min(rates) * max(rates))
    train = jax.jit(_trainer(spec, rebuild, num_steps, rate))
    one = jnp.asarray(1, jnp.int32)
    program = programs.compiled(train.lower(spec.theta, arrays, one))

    def timed(steps: int) -> float:
        started = time.perf_counter()
        wait(program(spec.theta, arrays, jnp.asarray(steps, jnp.int32)))
        return time.perf_counter() - started

    timed(1)
    steps = 4
    while timed(steps) < seconds / 4 and steps < 2**20:
        steps *= 4
    return lambda: timed(steps) / steps


def _trainer(
    spec: OptimizerSpec,
    rebuild: Callable[[list[Any]], Task],
    num_steps: int,
    rate: float,
) -> Callable[[Theta | None, list[Any], Any], Any]:
    def train(theta: Theta | None, arrays: list[Any], steps: Any) -> Any:
        task = rebuild(arrays)
        key = jax.random.key(0)
        params, task_state = task.init(key)
        optimizer = spec.transformation(
            num_steps, rate if spec.tunable else None, theta
        )

        def step(t: Any, carry: Any) -> Any:
            params, task_state, state = carry
            loss, grads, task_state = task.value_and_grad(
                params, task_state, jax.random.fold_in(key, t)
            )
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), task_state, state

        carry = (params, task_state, optimizer.init(params))
        return jax.lax.fori_loop(0, steps, step, carry)[0]

    return train


def other_load() -> float:
    """Processes besides this one that wanted to run in the last minute, per core; 0
    where the system does not say."""
    try:
        return max(0.0, (os.getloadavg()[0] - 1.0) / usable_cores())
    except (AttributeError, OSError):
        return 0.0


def device_name() -> str:
    """Kind of the default device, as JAX names it; no host names."""
    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}"
