"""One optimizer on one task, over seeds and learning rates, as one compiled program.

The whole training run is a `lax.scan`, vmapped over trajectories (a seed and a
learning rate each). The task's arrays and theta are arguments of the program, not
constants in it, and equal programs are compiled once. Nothing is hidden: losses are
recorded as they come, non-finite ones included.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from lopax._core.errors import ConfigError, TaskError
from lopax._core.renamed import renamed
from lopax._core.task import Task
from lopax._core.tree import split_arrays
from lopax._core.types import Key, Theta
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.runs import programs
from lopax.evaluate.specs import OptimizerSpec
from lopax.statistics.curves import METRIC, READ_OUT, Curves

SPLITS = ("valid", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult(Curves):
    """Curves, and what they took on this machine."""

    compile_seconds: float
    run_seconds: float


@renamed(lanes="vmap_size")
def run(
    spec: OptimizerSpec,
    task: Task,
    config: RunConfig,
    seeds: Sequence[int],
    *,
    vmap_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Trains `task` with `spec` for every seed and every learning rate of the spec.

    The same seed gives every optimizer the same initial parameters and the same
    batches, so runs are paired.

    **Arguments:**

    - `vmap_size`: trajectories that run side by side in one program. More is not always
        faster on a CPU: the working set should stay in its cache.
    - `progress`: called with (trajectories done, all) after each chunk.

    Raises `ConfigError` for repeated seeds or a `vmap_size` of none, `TaskError` if the
    task fails to trace.
    """
    seeds = [int(s) for s in seeds]
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds = {seeds}: must be different, and at least one")
    if vmap_size < 1:
        raise ConfigError(f"vmap_size = {vmap_size}: must be at least 1")
    rates = spec.learning_rates or (math.nan,)
    total = len(seeds) * len(rates)
    chunk = math.ceil(total / math.ceil(total / vmap_size))
    # Padding with copies of the last trajectory keeps one shape, hence one program.
    padded = np.minimum(np.arange(math.ceil(total / chunk) * chunk), total - 1)
    seed_index, rate_index = np.divmod(padded, len(rates))
    lane_seeds = np.asarray(seeds, np.uint32)[seed_index].reshape(-1, chunk)
    lane_rates = np.asarray(rates, np.float32)[rate_index].reshape(-1, chunk)

    arrays, rebuild = split_arrays(task)
    trajectory = functools.partial(_trajectory, spec, rebuild, config)
    started = time.perf_counter()
    if chunk == 1:  # no vmap: batching over one convolution kernel is slow on CPUs
        program = jax.jit(lambda h, a, s, r: _stack_one(trajectory(h, a, s[0], r[0])))
    else:
        program = jax.jit(jax.vmap(trajectory, in_axes=(None, None, 0, 0)))
    fixed = (spec.theta, arrays)
    try:
        compiled = programs.compiled(
            program.lower(*fixed, lane_seeds[0], lane_rates[0])
        )
    except (TypeError, ValueError) as error:
        raise TaskError(f"{spec.name!r} does not run on this task: {error}") from error
    compile_seconds = time.perf_counter() - started

    started = time.perf_counter()
    outputs = []
    for i in range(len(lane_seeds)):
        output = wait(compiled(*fixed, lane_seeds[i], lane_rates[i]))
        outputs.append(jax.tree.map(np.asarray, output))
        if progress is not None:
            progress(min((i + 1) * chunk, total), total)
    run_seconds = time.perf_counter() - started

    def gather(*parts: NDArray[Any]) -> NDArray[Any]:
        joined = np.concatenate(parts)[:total]
        return joined.reshape(len(seeds), len(rates), *joined.shape[1:])

    return RunResult.from_arrays(
        {
            **jax.tree.map(gather, *outputs),
            "eval_steps": np.asarray(config.eval_steps),
        },
        compile_seconds=compile_seconds,
        run_seconds=run_seconds,
    )


def wait(outputs: Any) -> Any:
    """Blocks until the arrays are there, but lets Ctrl-C through while it waits."""
    leaves = jax.tree.leaves(outputs)
    pause = 1e-4
    while not all(x.is_ready() for x in leaves):
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return jax.block_until_ready(outputs)


class _Carry(NamedTuple):
    params: Any
    task_state: Any
    opt_state: Any
    losses: Any  # [T], filled as the run goes
    nonfinite: Any
    updates: Any


def _trajectory(
    spec: OptimizerSpec,
    rebuild: Callable[[list[Any]], Task],
    config: RunConfig,
    theta: Theta | None,
    arrays: list[Any],
    seed: Any,
    learning_rate: Any,
) -> dict[str, Any]:
    """One training run as the arrays of `Curves` without seed and rate; pure, so that
    it can be vmapped over its last two arguments."""
    task = rebuild(arrays)
    init_key, train_key, eval_key = jax.random.split(jax.random.key(seed), 3)
    params, task_state = task.init(init_key)
    optimizer = spec.transformation(
        config.num_steps, learning_rate if spec.tunable else None, theta
    )
    zero = jnp.zeros((), jnp.int32)
    losses = jnp.zeros((config.num_steps,), jnp.float32)
    carry = _Carry(params, task_state, optimizer.init(params), losses, zero, zero)

    def step(t: Any, carry: _Carry) -> _Carry:
        loss, grads, task_state = task.value_and_grad(
            carry.params, carry.task_state, jax.random.fold_in(train_key, t)
        )
        updates, opt_state = optimizer.update(
            grads, carry.opt_state, carry.params, value=loss
        )
        useful = _all_finite(updates) & _any_nonzero(updates)
        return _Carry(
            params=optax.apply_updates(carry.params, updates),
            task_state=task_state,
            opt_state=opt_state,
            losses=carry.losses.at[t].set(loss.astype(jnp.float32)),
            nonfinite=carry.nonfinite + ~jnp.isfinite(loss),
            updates=carry.updates + useful,
        )

    # One copy of the step and one of the evaluation in the program, whatever the
    # lengths: trip counts are data. Compiling is what short runs wait for.
    def segment(carry: _Carry, part: tuple[Any, Any, Any, Any]) -> tuple[_Carry, Any]:
        index, start, stop, batches = part
        seen = _evaluate(
            task, spec, carry, jax.random.fold_in(eval_key, index), batches
        )
        return jax.lax.fori_loop(start, stop, step, carry), seen

    starts = np.asarray(config.eval_steps, np.int32)
    stops = np.append(starts[1:], starts[-1])
    batches = np.full_like(starts, config.eval_batches)
    batches[-1] = config.final_batches
    parts = (np.arange(len(starts)), starts, stops, batches)
    carry, splits = jax.lax.scan(segment, carry, jax.tree.map(jnp.asarray, parts))
    return {
        "train": carry.losses,
        **{name if name in SPLITS else METRIC + name: x for name, x in splits.items()},
        "nonfinite": carry.nonfinite,
        "updates": carry.updates,
        "diverged": ~(_all_finite(carry.params) & jnp.isfinite(carry.losses[-1])),
    }


def _evaluate(
    task: Task, spec: OptimizerSpec, carry: _Carry, key: Key, batches: Any
) -> dict[str, Any]:
    """Mean loss and metrics [] of both splits over `batches` [] fresh batches."""
    params = carry.params
    if spec.eval_params is not None:
        params = spec.eval_params(carry.opt_state, params)

    def one(batch_key: Key) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for i, split in enumerate(SPLITS):
            split_key = jax.random.fold_in(batch_key, i)
            seen[split] = task.evaluate(params, carry.task_state, split_key, split)
            for name, value in task.metrics(
                params, carry.task_state, split_key, split
            ).items():
                seen[f"{split}/{name}"] = value
        if spec.read_out:
            train_key = jax.random.fold_in(batch_key, len(SPLITS))
            seen[READ_OUT] = task.evaluate(params, carry.task_state, train_key, "train")
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), seen)

    def add(i: Any, total: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(jnp.add, total, one(jax.random.fold_in(key, i)))

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, key)
    )
    total = jax.lax.fori_loop(0, batches, add, zeros)
    return jax.tree.map(lambda x: x / batches, total)


def _stack_one(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


def _floats(tree: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def _all_finite(tree: Any) -> Any:
    flags = [jnp.all(jnp.isfinite(x)) for x in _floats(tree)]
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))


def _any_nonzero(tree: Any) -> Any:
    flags = [jnp.any(x != 0) for x in _floats(tree)]
    return functools.reduce(jnp.logical_or, flags, jnp.asarray(False))
