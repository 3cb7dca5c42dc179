"""A population small enough for tests, as a configuration and as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lopax.meta import (
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    PopulationConfig,
    RunConfig,
    TasksConfig,
)


def config(**changes: Any) -> RunConfig:
    parts: dict[str, Any] = {
        "name": "flock",
        "architecture": "learned_sgd",
        "tasks": (
            TasksConfig(
                datasets=("digits",),
                settings={"hidden": (), "batch_size": 8},
                augment="none",
            ),
        ),
        "estimator": EstimatorConfig(
            name="full_es",
            particles=2,
            sigma=0.1,
            horizon_low=4,
            horizon_high=4,
            chunk=None,
        ),
        "outer": OuterConfig(optimizer="self", multiplier=2.0),
        "phases": (PhaseConfig(outer_steps=8),),
        "population": PopulationConfig(
            size=4, interval=2, bootstrap=True, eval_tasks=2
        ),
        "log_every": 2,
        "eval_every": 0,
    }
    return RunConfig(**{**parts, **changes})


def identical(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-5), a, b)


RECIPE = """
name = "flock"
architecture = "learned_sgd"
log_every = 2
eval_every = 0
eval_tasks = []

[[tasks]]
datasets = ["digits"]
settings = { hidden = [], batch_size = 8 }
augment = "none"

[estimator]
name = "full_es"
particles = 2
horizon_low = 4
horizon_high = 4

[outer]
optimizer = "self"

[[phases]]
outer_steps = STEPS

[population]
size = 4
interval = 2
bootstrap = true
eval_tasks = 2
"""


def recipe(folder: Path, steps: int = 4) -> Path:
    path = folder / "flock.toml"
    path.write_text(RECIPE.replace("STEPS", str(steps)))
    return path
