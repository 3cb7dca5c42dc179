"""Costs for runs that have none: shipped baselines, and runs made without timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lopax.evaluate.problem import Problem
from lopax.evaluate.runs import cost
from lopax.evaluate.runs.cost import Cost
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.store import Store
from lopax.evaluate.specs import OptimizerSpec
from lopax.statistics.aggregate import geometric_mean

Say = Callable[[str], None]


def add_costs(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    say: Say = lambda text: None,
) -> int:
    """Times what the store's runs do not tell, and keeps it with them.

    A step of each optimizer is timed in turn with Adam's on every task; some seconds
    each. Returns how many were timed; pairs whose runs are not all there are left.
    """
    timed = 0
    for problem in problems:
        task = None
        for spec in optimizers:
            keys = [run_key(spec, problem, seed) for seed in seeds]
            if any(store.status(key) != "complete" for key in keys):
                continue
            records = [store.get(key) for key in keys]
            if any("ratio" in (r.header.get("cost") or {}) for r in records):
                continue
            task = task or problem.make()
            found = cost.measure(spec, task, problem.config.num_steps)
            first = records[0]
            store.put(
                first.key, {**first.header, "cost": found._asdict()}, first.arrays
            )
            timed += 1
            say(f"{problem.name}: {spec.name} {found.ratio:.2f} x adam")
    return timed


def suite_costs(
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    *,
    repeats: int = 3,
    say: Say = lambda text: None,
) -> dict[str, dict[str, Cost]]:
    """Costs by optimizer and task, without training anything."""
    found: dict[str, dict[str, Cost]] = {spec.name: {} for spec in optimizers}
    for problem in problems:
        task = problem.make()
        for spec in optimizers:
            price = cost.measure(spec, task, problem.config.num_steps, repeats=repeats)
            found[spec.name][problem.name] = price
            say(f"{problem.name}: {spec.name} {price.ratio:.2f} x adam")
    return found


def mean_ratio(costs: dict[str, Cost]) -> tuple[float, float, float]:
    """Step time over Adam's: the geometric mean over tasks, the lowest, the highest."""
    ratios = np.asarray([c.ratio for c in costs.values()])
    return geometric_mean(ratios.tolist()), float(ratios.min()), float(ratios.max())
