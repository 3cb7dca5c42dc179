"""What narrow momenta cost in final loss, and their bytes.

    python benchmarks/momentum_dtype.py [--quick] [--rules celo ...] [--suite NAME]

The bundled weights, the same seeds and batches for all formats; the value is the mean
over seeds of the training loss over the last tenth of the run. Without a suite, on
tasks whose data are embedded.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import jax
import numpy as np
import optax
from harness import Result, finish

import lopax
from lopax._core.tree import count_bytes, count_elements
from lopax.tasks import suites

TASKS = ("digits_mlp_32", "digits_mlp_128x128", "digits_conv")
TARGET = 1.02


def losses(task: Any, opt: Any, seeds: int, steps: int) -> np.ndarray:
    """Mean training loss over the last tenth, [seeds]."""

    def run(key: Any) -> Any:
        init_key, data_key = jax.random.split(key)
        params, task_state = task.init(init_key)

        def body(carry: Any, key: Any) -> Any:
            params, state, task_state = carry
            loss, grads, task_state = task.value_and_grad(params, task_state, key)
            updates, state = opt.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state, task_state), loss

        carry = (params, opt.init(params), task_state)
        trace = jax.lax.scan(body, carry, jax.random.split(data_key, steps))[1]
        return trace[-max(steps // 10, 1) :].mean()

    keys = jax.random.split(jax.random.key(0), seeds)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--rules", nargs="+", default=["celo"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--suite", help="its tasks and lengths, instead of the digits")
    parser.add_argument("--tasks", nargs="+", help="of these names only")
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    seeds, steps = (3, 300) if args.quick else (8, 2_000)
    seeds = args.seeds or seeds
    results = []
    for name, task, length in _tasks(args.suite, steps):
        if args.tasks and name not in args.tasks:
            continue
        params = jax.eval_shape(lambda t=task: t.init(jax.random.key(0)))[0]
        for rule in args.rules:

            def measured(
                dtype: str, rule: str = rule, task: Any = task, steps: int = length
            ) -> tuple[np.ndarray, Any]:
                opt = lopax.optimizer(rule, num_steps=steps, momentum_dtype=dtype)
                return losses(task, opt, seeds, steps), opt

            wide, opt = measured("float32")
            full = count_bytes(jax.eval_shape(opt.init, params))
            spread = float(wide.std() / wide.mean())
            for dtype in args.dtypes:
                final, opt = measured(dtype)
                held = count_bytes(jax.eval_shape(opt.init, params))
                ratio = float(final.mean() / wide.mean())
                what = f"{dtype}: final loss (seeds differ by {100 * spread:.1f} %)"
                results.append(
                    Result(
                        benchmark="momentum_dtype",
                        case=f"{rule}/{name}",
                        metric=what,
                        value=float(final.mean()),
                        reference=float(wide.mean()),
                        ratio=ratio,
                        target=TARGET,
                        ok=ratio <= max(TARGET, 1.0 + spread),
                    )
                )
                results.append(
                    Result(
                        benchmark="momentum_dtype",
                        case=f"{rule}/{name}",
                        metric=f"{dtype}: state bytes/parameter",
                        value=held / count_elements(params),
                        reference=full / count_elements(params),
                        ratio=held / full,
                    )
                )
    return finish(results)


def _tasks(suite: str | None, steps: int) -> list[tuple[str, Any, int]]:
    """Names, tasks and lengths of their runs."""
    if suite is None:
        return [(name, lopax.tasks.task(name), steps) for name in TASKS]
    found = suites.suite(suite).tasks
    return [(t.name, t.make(), t.num_steps) for t in found]


if __name__ == "__main__":
    sys.exit(main())
