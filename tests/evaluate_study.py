"""A made-up study with known results, shared by the tests of the report."""

from __future__ import annotations

import numpy as np

from lopax.evaluate.baselines import BASELINES
from lopax.evaluate.problem import Problem, RunConfig
from lopax.evaluate.results.study import MissingRun, RunGroup, Study
from lopax.evaluate.specs import OptimizerSpec

STEPS, EVALS = 200, 5


def fake_learned(name: str) -> OptimizerSpec:
    return OptimizerSpec(
        name=name,
        make=lambda n, lr: BASELINES["adam"].make(n, 1e-3),
        kind="learned",
        settings={"architecture": "celo", "config": {}, "weights": "0123456789ab"},
        note="made up",
    )


def fake_cell(
    spec: OptimizerSpec, seeds: int, floor: float, speed: float, rng, scale: float
) -> RunGroup:
    """Exponential decay to a floor; the best of 15 rates is the eleventh (0.01)."""
    count = max(1, len(spec.learning_rates))
    t = np.arange(STEPS)
    train = np.empty((seeds, count, STEPS), np.float32)
    for s in range(seeds):
        for i in range(count):
            off = abs(i - 10) if count > 1 else 0
            rate = speed / (1 + off**2)
            noise = 0.01 * rng.standard_normal(STEPS)
            level = floor * (1 + 0.02 * rng.standard_normal())
            train[s, i] = scale * (level + (2.3 - level) * np.exp(-rate * t) + noise)
    diverged = np.zeros((seeds, count), bool)
    if count > 1:  # the largest rates blow up
        train[:, -2:, 60:] = np.inf
        diverged[:, -2:] = True
    look = np.linspace(0, STEPS - 1, EVALS).astype(int)
    return RunGroup(
        train=train,
        valid=train[..., look],
        test=train[..., look] * 1.05,
        metrics={"test/accuracy": np.exp(-train[..., look])},
        nonfinite=(~np.isfinite(train)).sum(-1).astype(np.int32),
        updates=np.full((seeds, count), STEPS, np.int32),
        diverged=diverged,
        eval_steps=np.linspace(0, STEPS, EVALS).astype(int),
        headers=(
            {
                "cost": {
                    "step_ms": 0.2 + 0.1 * (spec.kind == "learned"),
                    "parameters": 1000,
                    "state_bytes": 8000,
                    "bytes_per_parameter": 8.0 + 20.0 * (spec.kind == "learned"),
                    "device": "cpu: cpu",
                },
                "machine": {"device": "cpu: cpu", "jax": "0.0"},
            },
        )
        * seeds,
    )


def fake_study(
    tasks: int = 4,
    seeds: int = 3,
    baselines: tuple[str, ...] = ("adam", "sgdm", "lion"),
    holes: bool = False,
) -> Study:
    """`celo` ends 20 % below Adam's floor on all tasks but the last, where it
    diverges with its last seed."""
    rng = np.random.default_rng(0)
    optimizers = [fake_learned("celo"), *(BASELINES[b] for b in baselines)]
    problems = [
        Problem(
            name=f"task_{i}",
            make=lambda: None,  # type: ignore[arg-type,return-value]
            config=RunConfig(num_steps=STEPS),
            note="made up",
        )
        for i in range(tasks)
    ]
    groups, missing = {}, []
    for i, problem in enumerate(problems):
        for j, spec in enumerate(optimizers):
            floor = 0.5 * (0.8 if j == 0 else 1.0 + 0.1 * (j - 1))
            cell = fake_cell(spec, seeds, floor, 0.06 if j == 0 else 0.04, rng, 1.0 + i)
            if j == 0 and i == tasks - 1:
                cell.train[-1, 0, 150:] = np.nan
                cell.nonfinite[-1, 0] = 50
                cell.diverged[-1, 0] = True
            if holes and i == 0 and j == 2:
                missing.append(MissingRun(spec.name, problem.name, 1, "not run"))
                continue
            groups[spec.name, problem.name] = cell
    return Study(
        title="A made-up study",
        optimizers=tuple(optimizers),
        problems=tuple(problems),
        seeds=tuple(range(seeds)),
        groups=groups,
        missing=tuple(missing),
    )
