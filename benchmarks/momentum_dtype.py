"""What momenta in bfloat16 cost in final loss, on tasks whose data are embedded.

    python benchmarks/momentum_dtype.py [--quick] [--rules celo ...]

The bundled weights, the same seeds and batches for both; the value is the mean over
seeds of the training loss over the last tenth of the run.
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
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--rules", nargs="+", default=["celo"])
    args = parser.parse_args()
    seeds, steps = (3, 300) if args.quick else (8, 2_000)
    results = []
    for name in TASKS:
        task = lopax.tasks.task(name)
        params = jax.eval_shape(lambda t=task: t.init(jax.random.key(0)))[0]
        for rule in args.rules:
            final, held = {}, {}
            for dtype in ("float32", "bfloat16"):
                opt = lopax.optimizer(rule, num_steps=steps, momentum_dtype=dtype)
                final[dtype] = losses(task, opt, seeds, steps)
                held[dtype] = count_bytes(jax.eval_shape(opt.init, params))
            ratio = float(final["bfloat16"].mean() / final["float32"].mean())
            spread = float(final["float32"].std() / final["float32"].mean())
            results += [
                Result(
                    benchmark="momentum_dtype",
                    case=f"{rule}/{name}",
                    metric=f"final loss (seeds differ by {100 * spread:.1f} %)",
                    value=float(final["bfloat16"].mean()),
                    reference=float(final["float32"].mean()),
                    ratio=ratio,
                    target=TARGET,
                    ok=ratio <= max(TARGET, 1.0 + spread),
                ),
                Result(
                    benchmark="momentum_dtype",
                    case=f"{rule}/{name}",
                    metric="state bytes/parameter",
                    value=held["bfloat16"] / count_elements(params),
                    reference=held["float32"] / count_elements(params),
                    ratio=held["bfloat16"] / held["float32"],
                ),
            ]
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
