"""How noisy each meta-gradient estimator is, and what an estimate costs.

    python benchmarks/estimator_variance.py [--quick] [--plot FILE]

At a fixed theta (Celo before meta-training, and the bundled one) every estimator makes
a row of estimates on the same kind of inner problems; cost is inner steps and seconds
of an estimate. Noise is the trace of the covariance. Estimates of successive windows
share noise and inner problems, so what an outer optimizer meets that averages over
many is the noise in the long run: block length times that of the means of blocks, a
block being the windows of one longest run. An estimator of twice the noise needs twice
the particles for the same quality, so long-run noise times seconds is what counts; it
is compared with PES, the default. The cosine with the mean of full ES says whether an
estimator points elsewhere; noise alone would leave the cosine given as reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import Result, finish
from jax.flatten_util import ravel_pytree

from lopax.architectures import architecture
from lopax.meta import EstimatorConfig, RunConfig, TasksConfig, build_family
from lopax.meta.loop import initial_theta
from lopax.meta.trainer import build_estimator

DEFAULT = EstimatorConfig().name
REFERENCE = "full_es"
TRAINABLE = ("rule/*", "scheduler/head/*")  # as in recipes/celo.toml


class Setting(NamedTuple):
    """How long runs are and how many estimates are made."""

    particles: int
    truncation: int
    low: int
    high: int
    estimates: int
    full_estimates: int  # of estimators that make whole runs


QUICK = Setting(4, 10, 20, 200, 168, 24)
FULL = Setting(8, 50, 100, 1000, 168, 32)
CASES: dict[str, dict[str, Any]] = {
    "pes": {"name": "pes"},
    "nres": {"name": "nres"},
    "truncated_es": {"name": "truncated_es"},
    "full_es": {"name": "full_es"},
    "pes, averaged": {"name": "pes", "horizon_averaged": True},
    "nres, averaged": {"name": "nres", "horizon_averaged": True},
}
GROUPS = {
    "mlp": TasksConfig(datasets=("digits",)),
    "conv": TasksConfig(
        datasets=("digits",),
        network="conv",
        settings={"channels": [4, 8], "strides": [2, 2], "batch_size": 16},
    ),
}
QUICK_CASES, QUICK_GROUPS = ("pes", "nres", "full_es"), ("mlp",)
THETAS = {"untrained": None, "bundled": "celo"}


@dataclasses.dataclass(frozen=True)
class Row:
    """What an estimator did."""

    mean: np.ndarray  # [theta]
    noise: float  # of one estimate
    long_run: float  # see the module docstring
    error: float  # of the mean: long-run noise / estimates
    steps: float  # inner steps of an estimate
    seconds: float

    @property
    def work(self) -> float:
        """What is to be small: noise that is left after a given time, times it."""
        return self.long_run * self.seconds


class Program:
    """One estimator, compiled once for all thetas."""

    def __init__(self, family: Any, setting: Setting, changes: dict[str, Any]):
        whole = changes.get("name") == "full_es"
        config = EstimatorConfig(
            particles=setting.particles,
            truncation=None if whole else setting.truncation,
            horizon_low=setting.low,
            horizon_high=setting.high,
            chunk=setting.particles,
            **changes,
        )
        rule = architecture("celo")
        estimator = build_estimator(config, rule, (family,), TRAINABLE)
        self.count = setting.full_estimates if whole else setting.estimates
        # As many unused estimates as the longest run has windows.
        self.warm = 0 if whole else setting.high // setting.truncation + 1
        self.init = jax.jit(estimator.init)

        def step(theta: Any, state: Any, key: Any) -> Any:
            grad, state, info = estimator.step(theta, state, key)
            return ravel_pytree(grad)[0], state, info.inner_steps

        self.step = jax.jit(step)

    def measure(self, theta: Any) -> Row:
        """A row of estimates at theta."""
        # On a CPU its own time, which does not grow with the load of the machine.
        on_cpu = jax.default_backend() == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        state = self.init(theta, jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), self.warm + self.count + 1)
        for key in keys[: self.warm + 1]:  # the first one compiles
            _, state, _ = jax.block_until_ready(self.step(theta, state, key))
        grads, steps, times = [], [], []
        for key in keys[self.warm + 1 :]:
            started = clock()
            found = jax.block_until_ready(self.step(theta, state, key))
            times.append(clock() - started)
            grad, state, made = found
            grads.append(grad)
            steps.append(float(made))
        samples = np.asarray(jnp.stack(grads), np.float64)
        mean = samples.mean(axis=0)
        block = max(1, self.warm)
        blocks = samples[: len(samples) // block * block]
        blocks = blocks.reshape(-1, block, samples.shape[1]).mean(axis=1)
        long_run = block * spread(blocks)
        cost, took = float(np.mean(steps)), float(np.mean(times))
        error = long_run / self.count
        return Row(mean, spread(samples), long_run, error, cost, took)


def spread(samples: np.ndarray) -> float:
    """Trace of the covariance of [count, theta]."""
    return float(np.var(samples, axis=0, ddof=1).sum())


def cosine(a: Row, b: Row) -> tuple[float, float]:
    """Cosine of the means, and what it would be if both were the same vector with
    their noise: the share of their length that is not noise."""
    lengths = [float(r.mean @ r.mean) for r in (a, b)]
    found = float(a.mean @ b.mean) / np.sqrt(lengths[0] * lengths[1])
    shares = [max(0.0, 1.0 - r.error / n) for r, n in zip((a, b), lengths, strict=True)]
    return found, float(np.sqrt(shares[0] * shares[1]))


def line(case: str, metric: str, value: float, **more: Any) -> Result:
    return Result(
        benchmark="estimator_variance", case=case, metric=metric, value=value, **more
    )


def compare(case: str, rows: dict[str, Row]) -> list[Result]:
    """Lines for the estimators of one theta and task."""
    base = rows[DEFAULT]
    results = []
    for name, row in rows.items():
        label = f"{case}, {name}"
        found, reachable = cosine(row, rows[REFERENCE])
        for metric, mine, its in (
            ("noise", row.noise, base.noise),
            ("long-run noise", row.long_run, base.long_run),
            ("inner steps", row.steps, base.steps),
            ("seconds", row.seconds, base.seconds),
            ("long-run noise x seconds", row.work, base.work),
        ):
            results.append(line(label, metric, mine, reference=its, ratio=mine / its))
        metric = f"cosine with {REFERENCE}"
        results.append(line(label, metric, found, reference=reachable))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--plot", help="draw noise against cost to this PNG")
    args = parser.parse_args()
    setting = QUICK if args.quick else FULL
    thetas = {k: initial_theta(RunConfig(start_from=x)) for k, x in THETAS.items()}
    results, points = [], {}
    for group in QUICK_GROUPS if args.quick else GROUPS:
        family = build_family(GROUPS[group])
        rows: dict[str, dict[str, Row]] = {kind: {} for kind in thetas}
        for name in QUICK_CASES if args.quick else CASES:
            program = Program(family, setting, CASES[name])
            for kind, theta in thetas.items():
                rows[kind][name] = program.measure(theta)
        for kind, found in rows.items():
            case = f"{kind} celo, {group}"
            results += compare(case, found)
            points[case] = found
    if args.plot:
        plot(points, args.plot)
    code = finish(results)
    for case, found in points.items():
        unbiased = {k: r.work for k, r in found.items() if "trunc" not in k}
        best = min(unbiased, key=unbiased.__getitem__)
        print(
            f"{case}: least long-run noise x seconds of the unbiased: {best} "
            f"({unbiased[best] / unbiased[DEFAULT]:.2f} of {DEFAULT}'s)",
            file=sys.stderr,
        )
    return code


def plot(points: dict[str, dict[str, Row]], path: str) -> None:
    """Noise over seconds, a panel for each theta and task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(points), figsize=(3.6 * len(points), 3.4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, (title, rows) in zip(axes[0], points.items(), strict=True):
        draw(axis, title, rows)
    figure.savefig(path, dpi=150)


def draw(axis: Any, title: str, rows: dict[str, Row]) -> None:
    """One panel; on the grey line long-run noise x seconds is that of the default."""
    times = [r.seconds for r in rows.values()]
    span = np.geomspace(0.7 * min(times), 1.4 * max(times), 2)
    base = rows[DEFAULT]
    axis.plot(span, base.work / span, color="0.8", zorder=0)
    marks: Sequence[str] = "osD^vP"
    for mark, (name, row) in zip(marks, rows.items(), strict=False):
        axis.plot(row.seconds, row.long_run, mark, label=name)
    axis.set(xscale="log", yscale="log", xlabel="s per estimate", title=title)
    axis.set_ylabel("long-run noise")
    axis.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    sys.exit(main())
