"""How fast meta-training is: the standard outer step, its growth, its parts.

    python benchmarks/meta_throughput.py [--quick] [--devices N]

Standard outer step: four strata x 8 antithetic pairs x 50 inner steps of an 8x8 image
MLP 64-32-10 with batches of 64, PES. On embedded digits (four times the same set; the
cost does not depend on what the images show). The plain rule runs in the same process
for comparison; the published implementation took 1.71 s on a two-core machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices")
    return parser.parse_args()


ARGS = parse() if __name__ == "__main__" else argparse.Namespace(quick=True, devices=1)
if ARGS.devices > 1:
    flag = f"--xla_force_host_platform_device_count={ARGS.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jax  # noqa: E402  the flag must be set first
import numpy as np  # noqa: E402
from harness import Result, finish, paired  # noqa: E402

from lopax.estimators.particles import AXIS  # noqa: E402
from lopax.meta import (  # noqa: E402
    EstimatorConfig,
    PhaseConfig,
    PhaseTrainer,
    RunConfig,
    TasksConfig,
    build_family,
)
from lopax.meta.loop import initial_theta  # noqa: E402

PUBLISHED_SECONDS = 1.71
FAMILY = build_family(TasksConfig(datasets=("digits",) * 4))
RULE = PhaseConfig(
    name="rule", outer_steps=10, trainable=("rule/*",), settings={"phase": 1}
)
SCHEDULER = PhaseConfig(name="scheduler", outer_steps=10, trainable=("scheduler/*",))
ALL = PhaseConfig(name="all", outer_steps=10)


class Outer:
    """A compiled outer step with its own state."""

    def __init__(self, run: RunConfig, phase: PhaseConfig):
        mesh = jax.make_mesh((ARGS.devices,), (AXIS,)) if ARGS.devices > 1 else None
        trainer = PhaseTrainer(run, phase, FAMILY, mesh)
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
    chunk = 8 // ARGS.devices if ARGS.devices > 1 else 8
    config = dataclasses.replace(EstimatorConfig(chunk=chunk), **estimator)
    return RunConfig(architecture=architecture, settings=settings, estimator=config)


def line(case: str, metric: str, value: float, **more: Any) -> Result:
    return Result(
        benchmark="meta_throughput", case=case, metric=metric, value=value, **more
    )


def main() -> int:
    rounds = 3 if ARGS.quick else 12
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
    if not ARGS.quick:
        results += growth(fast, value, rounds)
    return finish(results)


def growth(fast: Outer, base: float, rounds: int) -> list[Result]:
    """Time per inner step as particles, window and estimator change."""
    per_step = base / fast.inner_steps
    found = []
    cases = {
        **{f"{2 * n} trajectories": {"particles": n} for n in (128, 512, 2048)},
        "window of 100": {"truncation": 100},
        "truncated_es": {"name": "truncated_es"},
        "truncated_backprop": {"name": "truncated_backprop"},
    }
    for name, estimator in cases.items():
        case = Outer(standard(**estimator), RULE)
        value, reference, _ = paired(case, fast, max(2, rounds // 4))
        ratio = (value / case.inner_steps) / (reference / fast.inner_steps)
        bounded = "trajectories" in name or "window" in name
        found.append(
            line(
                name,
                "us per inner step, against the standard",
                1e6 * value / case.inner_steps,
                reference=1e6 * per_step,
                ratio=ratio,
                target=1.2 if bounded else None,
                ok=not bounded or 0.8 <= ratio <= 1.2,
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
