"""Whether everything a variety of tasks can draw runs: a smoke sweep.

    python benchmarks/variety_sweep.py [--groups 9] [--particles 128] [--steps 3]

Draws groups of all kinds of networks on embedded data with every augmentation on, runs
learned SGD on each particle's own task for a few steps, and counts how many different
configurations that were. Fails if a loss is not finite or fewer than 1,000 differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Result, finish

from lopax.architectures import architecture
from lopax.estimators import Horizon, Unroller
from lopax.meta import TasksConfig, VarietyConfig, build_family, draw_groups
from lopax.tasks.degraded import PROBABILITIES

TARGET = 1_000


def sweep(
    group: TasksConfig, particles: int, seed: int, steps: int = 3
) -> tuple[np.ndarray, set[bytes]]:
    """Losses [steps, particles, 1] of learned SGD, and what tells the particles' tasks
    apart: all numbers that were drawn for them."""
    rule = architecture("learned_sgd")
    theta = rule.init_theta(jax.random.key(0))
    unroller = Unroller(
        optimizer=rule,
        family=build_family(group),
        horizon=Horizon(low=steps, high=steps),
    )
    thetas = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (particles, 1, *x.shape)), theta
    )
    strata = jnp.arange(particles, dtype=jnp.int32) % unroller.family.num_strata

    @jax.jit
    def run(keys: Any) -> Any:
        started = unroller.start_all(thetas, keys, strata, False)
        _, window = unroller.window(thetas, started, strata, keys, steps)
        return started.config, started.inner.task_state, window.losses

    config, state, losses = run(jax.random.split(jax.random.key(seed), particles))
    host = jax.tree.map(np.asarray, (config, state))
    seen = {
        b"".join(x[i].tobytes() for x in jax.tree.leaves(host))
        for i in range(particles)
    }
    return np.asarray(losses), seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=9)
    parser.add_argument("--particles", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    variety = VarietyConfig(
        groups=args.groups,
        images=("digits",),
        texts=("sklearn_descr",),
        degrade=dict.fromkeys(PROBABILITIES, 0.2) | {"most_directions": 8},
    )
    started, different, broken = time.perf_counter(), 0, 0
    for number, group in enumerate(draw_groups(variety)):
        losses, seen = sweep(group, args.particles, number, args.steps)
        different += len(seen)
        broken += int(np.sum(~np.isfinite(losses)))
        print(f"{group.network}: {len(seen)} different", file=sys.stderr, flush=True)
    what = "variety_sweep"
    return finish(
        [
            Result(
                benchmark=what,
                case=f"{args.groups} groups",
                metric="different configurations run",
                value=float(different),
                target=float(TARGET),
                ok=different >= TARGET,
            ),
            Result(
                benchmark=what,
                case=f"{args.groups} groups",
                metric="losses that are not finite",
                value=float(broken),
                target=0.0,
                ok=broken == 0,
            ),
            Result(
                benchmark=what,
                case=f"{args.groups} groups",
                metric="seconds",
                value=time.perf_counter() - started,
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
