"""How fast meta-training is: the standard outer step, its growth, its parts.

    python benchmarks/meta_throughput.py [--quick] [--devices N] [--plot FILE]

Standard outer step: four strata x 8 antithetic pairs x 50 inner steps of an 8x8 image
MLP 64-32-10 with batches of 64, PES. On embedded digits (four times the same set; the
cost does not depend on what the images show). The plain rule runs in the same process
for comparison; the published implementation took 1.71 s on a two-core machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import Result, finish, paired
from jax.sharding import PartitionSpec as P

from lopax._core.machine import usable_cores
from lopax.estimators.particles import AXIS
from lopax.meta import (
    EstimatorConfig,
    PhaseConfig,
    PhaseTrainer,
    RunConfig,
    TasksConfig,
    build_family,
    read_log,
)
from lopax.meta.distributed import particle_mesh, request_cpu_devices
from lopax.meta.loop import initial_theta

PUBLISHED_SECONDS = 1.71
DIGITS = TasksConfig(datasets=("digits",) * 4)
RULE = PhaseConfig(
    name="rule", outer_steps=10, trainable=("rule/*",), settings={"phase": 1}
)
SCHEDULER = PhaseConfig(name="scheduler", outer_steps=10, trainable=("scheduler/*",))
ALL = PhaseConfig(name="all", outer_steps=10)


class Outer:
    """A compiled outer step with its own state."""

    def __init__(self, run: RunConfig, phase: PhaseConfig, families: Any = None):
        families = families or (build_family(DIGITS),)
        mesh = particle_mesh() if len(jax.devices()) > 1 else None
        trainer = PhaseTrainer(run, phase, families, mesh)
        self.trainer = trainer
        self.state = trainer.init(initial_theta(run), jax.random.key(0))
        started = time.perf_counter()
        compiled = trainer.lower(self.state, 1).compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary = compiled.memory_analysis().temp_size_in_bytes
        self.inner_steps = 0.0
        self()

    def __call__(self) -> Any:
        self.state, info = self.trainer.advance(self.state, 1)
        self.inner_steps = float(np.sum(info.estimate.inner_steps))
        return info


def standard(
    architecture: str = "celo", backend: str | None = None, **estimator: Any
) -> RunConfig:
    settings: dict[str, Any] = {"start": "adam"} if architecture == "celo" else {}
    if backend is not None:
        settings["backend"] = backend
    config = dataclasses.replace(EstimatorConfig(), **estimator)
    return RunConfig(architecture=architecture, settings=settings, estimator=config)


def line(case: str, metric: str, value: float, **more: Any) -> Result:
    return Result(
        benchmark="meta_throughput", case=case, metric=metric, value=value, **more
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--plot", help="also draw the growth to this PNG")
    parser.add_argument(
        "--devices",
        type=int,
        default=usable_cores(),
        help="virtual CPU devices; default, as for `lopax train`: one for each core",
    )
    args = parser.parse_args()
    request_cpu_devices(args.devices)
    rounds = 3 if args.quick else 12
    fast = Outer(standard(), RULE)
    plain = Outer(standard(backend="plain"), RULE)
    value, reference, ratio = paired(fast, plain, rounds)
    results = [
        line(
            "celo phase 1",
            "s per outer step",
            value,
            reference=PUBLISHED_SECONDS,
            ratio=value / PUBLISHED_SECONDS,
            target=0.17,
            ok=value <= 0.17,
        ),
        line("celo phase 1", "against the plain rule", ratio, reference=reference),
        line("celo phase 1", "inner steps/s", fast.inner_steps / value),
        line(
            "celo phase 1",
            "compile s",
            fast.compile_seconds,
            reference=49.0,
            target=15.0,
            ok=fast.compile_seconds <= 15.0,
        ),
        line("celo phase 1", "temporary MB", fast.temporary / 1e6, target=1000.0),
    ]
    second = Outer(standard(), SCHEDULER)
    value2, reference2, ratio2 = paired(second, fast, rounds)
    results.append(
        line(
            "celo phase 2",
            "s per outer step, against phase 1",
            value2,
            reference=reference2,
            ratio=ratio2,
            target=1.2,
            ok=ratio2 <= 1.2,
        )
    )
    adam = Outer(standard("celo_adam"), ALL)
    value3, reference3, ratio3 = paired(adam, second, rounds)
    results.append(
        line(
            "celo_adam",
            "s per outer step, against celo phase 2",
            value3,
            reference=reference3,
            ratio=ratio3,
            target=1.0,
            ok=ratio3 <= 1.0,
        )
    )
    if not args.quick:
        results += growth(fast, rounds=3)
        results += larger(rounds=5)
        results += two_processes()
    if args.plot:
        plot(results, args.plot)
    return finish(results)


def growth(fast: Outer, rounds: int) -> list[Result]:
    """Time per inner step as particles, window, batch and estimator change; with
    other batches, per example."""
    cases: dict[str, tuple[float, Outer]] = {}
    for pairs in (32, 128, 512, 2048):
        name = f"{2 * pairs} trajectories"
        cases[name] = 1.0, Outer(standard(particles=pairs), RULE)
    for window in (25, 100, 200):
        cases[f"window of {window}"] = 1.0, Outer(standard(truncation=window), RULE)
    for batch in (128, 256):
        group = dataclasses.replace(DIGITS, settings={"batch_size": batch})
        outer = Outer(standard(), RULE, (build_family(group),))
        cases[f"batches of {batch}"] = batch / 64, outer
    for name in ("truncated_es", "truncated_backprop"):
        cases[name] = 0.0, Outer(standard(name=name), RULE)
    found = []
    for name, (work, case) in cases.items():
        value, reference, _ = paired(case, fast, rounds)
        per_step, standard_step = value / case.inner_steps, reference / fast.inner_steps
        ratio = per_step / standard_step / (work or 1.0)
        found.append(
            line(
                name,
                "us per inner step, against the standard for as many examples",
                1e6 * per_step,
                reference=1e6 * standard_step,
                ratio=ratio,
                target=1.2 if work else None,
                ok=not work or ratio <= 1.2,
            )
        )
    return found


LARGER = {
    # network: settings with about 100,000 parameters
    "mlp": {"hidden": [256, 256], "size": 8, "batch_size": 64},
    "conv": {"channels": [64, 64, 128], "batch_size": 32},
    "transformer": {"width": 64, "layers": 2, "batch_size": 16},
}


def larger(rounds: int) -> list[Result]:
    """Bigger tasks: a whole inner step against the task's own loss and gradient,
    both for the same number of trajectories and steps."""
    found = []
    for network, settings in LARGER.items():
        text = network == "transformer"
        group = TasksConfig(
            datasets=("sklearn_descr" if text else "digits",),
            network=network,
            settings=settings,
        )
        family = build_family(group)
        particles = 2 * len(jax.devices())
        config = standard(particles=particles, truncation=10, chunk=1)
        case = Outer(config, RULE, (family,))
        alone = gradients_alone(family, trajectories=2 * particles, steps=10)
        value, reference, ratio = paired(case, alone, rounds)
        params, _ = family.task(family.sample(jax.random.key(0))).init(
            jax.random.key(0)
        )
        count = sum(x.size for x in jax.tree.leaves(params))
        found.append(
            line(
                f"{network}, {count:,} parameters",
                "s per outer step, against forward and backward alone",
                value,
                reference=reference,
                ratio=ratio,
                target=1 / 0.7,
                ok=ratio <= 1 / 0.7,
            )
        )
    return found


def gradients_alone(family: Any, trajectories: int, steps: int) -> Callable[[], Any]:
    """The task's loss and gradient, as often as an outer step computes them and on as
    many devices."""
    keys = jax.random.split(jax.random.key(0), trajectories)

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=particle_mesh(),
        in_specs=(P(), P(AXIS)),
        out_specs=P(AXIS),
        check_vma=False,
    )
    def run(family: Any, keys: Any) -> Any:
        def one(key: Any) -> Any:
            task = family.task(family.sample(key))
            params, state = task.init(key)

            def body(carry: Any, key: Any) -> Any:
                params, state = carry
                loss, grads, state = task.value_and_grad(params, state, key)
                # Feed the gradient back, or the loop could be hoisted away.
                params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)
                return (params, state), loss

            keys = jax.random.split(key, steps)
            return jax.lax.scan(body, (params, state), keys)[1]

        return jax.lax.map(one, keys)

    return lambda: run(family, keys)


def plot(results: Sequence[Result], path: str) -> None:
    """Time per inner step over trajectories and window."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axis.axhspan(0.8, 1.2, color="0.92", label="within 20 %")
    for word, mark, label in (
        ("trajectories", "o-", "trajectories"),
        ("window of", "s--", "inner steps a window"),
        ("batches of", "^:", "batch, per example"),
    ):
        chosen = [
            (int(next(t for t in r.case.split() if t.isdigit())), r.ratio)
            for r in results
            if word in r.case and r.ratio is not None
        ]
        axis.plot([x for x, _ in chosen], [y for _, y in chosen], mark, label=label)
    axis.set_xscale("log", base=2)
    axis.set_ylim(0.0, 2.0)
    axis.set_xlabel("trajectories, inner steps a window, batch size")
    axis.set_ylabel("time per inner step / standard")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def two_processes(steps: int = 60) -> list[Result]:
    """Two processes of one core each, as one job, against one process of one core.

    Two jobs that know nothing of each other show what the machine gives at most: its
    cores may share caches, memory and, in a virtual machine, even the core.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.toml")
        recipe.write_text(RECIPE.format(steps=steps))
        one = rate_of(recipe, [Path(folder, "one")])
        unrelated = rate_of(recipe, [Path(folder, "a"), Path(folder, "b")])
        shared = Path(folder, "two")
        two = rate_of(recipe, [shared, shared])
    return [
        line(
            "two processes of one core",
            "inner steps/s, against one process of one core",
            two,
            reference=one,
            ratio=two / one,
            target=1.7,
            ok=two / one >= 1.7,
        ),
        line(
            "two processes of one core",
            "inner steps/s, against two unrelated jobs",
            two,
            reference=unrelated,
            ratio=two / unrelated,
        ),
    ]


RECIPE = """
name = "processes"
architecture = "celo"
settings = {{ start = "adam" }}
eval_every = 0
log_every = 10
[[tasks]]
datasets = ["digits", "digits", "digits", "digits"]
[[phases]]
name = "rule"
outer_steps = {steps}
trainable = ["rule/*"]
settings = {{ phase = 1 }}
"""


PINNED = """
import os, sys
os.sched_setaffinity(0, {{{core}}})
from lopax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def rate_of(recipe: Path, folders: Sequence[Path]) -> float:
    """Inner steps per second over the second half of a run by a process for each
    folder: one job if the folders are the same, else the sum over their jobs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    processes, together = len(folders), len(set(folders)) < len(folders)
    jobs = []
    for i, out in enumerate(folders):
        core = cores[i % len(cores)]
        command = [sys.executable, "-c", PINNED.format(core=core)]
        command += ["train", str(recipe), "--out", str(out)]
        if together:
            command += ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
            command += ["--processes", str(processes), "--process-id", str(i)]
        quiet = subprocess.DEVNULL
        jobs.append(subprocess.Popen(command, stderr=quiet, stdout=quiet))
    if any([job.wait() for job in jobs]):
        raise RuntimeError(f"a process of {recipe} failed")
    return sum(_rate(read_log(out / "metrics.jsonl")) for out in set(folders))


def _rate(log: Sequence[Any]) -> float:
    half = len(log) // 2
    seconds = log[-1]["seconds"] - log[half]["seconds"]
    return sum(x["inner_steps"] for x in log[half + 1 :]) / seconds


if __name__ == "__main__":
    sys.exit(main())
