"""From a store's runs to a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lopax._core.errors import FileFormatError, ResumeMismatch
from lopax.evaluate.problem import Problem, check_grid
from lopax.evaluate.results.study import MissingRun, RunGroup, Study
from lopax.evaluate.runs.grid import run_grid
from lopax.evaluate.runs.jobs import Outcome
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.store import Record, Store
from lopax.evaluate.specs import OptimizerSpec
from lopax.statistics.tuning import Tuned

SWEEP = "sweep:"
"""Begins the names of the arrays that only reduced runs have: the curves of one
learning rate, and what the whole sweep found (`lopax.evaluate.results.shipped`)."""


def run_study(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    title: str = "Optimizer comparison",
    **options: Any,
) -> tuple[Study, Outcome]:
    """`run_grid`, then `collect`: whatever is missing is told by the study."""
    outcome = run_grid(store, optimizers, problems, seeds, **options)
    return collect(store, optimizers, problems, seeds, title), outcome


def collect(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    title: str = "Optimizer comparison",
) -> Study:
    """Reads a grid's runs from a store; one that is not there, or damaged, becomes a
    `MissingRun`."""
    check_grid(optimizers, problems, seeds)
    groups, missing = {}, []
    for spec in optimizers:
        for problem in problems:
            records = []
            for seed in seeds:
                key = run_key(spec, problem, seed)
                status = "not run"
                try:
                    if store.status(key) != "absent":
                        records.append(store.get(key))
                        continue
                except FileFormatError:
                    status = "file damaged"
                crash = store.failure(key)
                reason = f"crashed: {crash}" if crash else status
                missing.append(MissingRun(spec.name, problem.name, int(seed), reason))
            if len(records) == len(seeds):
                if len({r.arrays["train"].shape for r in records}) > 1:
                    reason = "reduced runs beside full ones: delete the reduced"
                    missing.append(
                        MissingRun(spec.name, problem.name, int(seeds[0]), reason)
                    )
                    continue
                groups[spec.name, problem.name] = _group(records)
    for problem in problems:
        _check_same_data(problem.name, groups)
    return Study(
        title=title,
        optimizers=tuple(optimizers),
        problems=tuple(problems),
        seeds=tuple(int(s) for s in seeds),
        groups=groups,
        missing=tuple(missing),
    )


def _check_same_data(task: str, groups: Mapping[tuple[str, str], RunGroup]) -> None:
    """Raises `ResumeMismatch` if runs of one task saw different data."""
    seen: dict[str, str] = {}
    for (optimizer, name), group in groups.items():
        if name == task:
            for header in group.headers:
                seen.setdefault(header.get("data", ""), optimizer)
    if len(seen) > 1:
        listed = ", ".join(f"{h or 'none'} ({o})" for h, o in seen.items())
        raise ResumeMismatch(
            f"results for task {task!r} come from different data: {listed}. Use the "
            "same data set for all of them, or separate stores"
        )


def _group(records: Sequence[Record]) -> RunGroup:
    return RunGroup.from_seeds(
        [r.arrays for r in records],
        headers=tuple(r.header for r in records),
        sweep=_sweep(records[0].arrays),
    )


def _sweep(arrays: Mapping[str, NDArray[Any]]) -> Tuned | None:
    if f"{SWEEP}final" not in arrays:
        return None
    final, index = arrays[f"{SWEEP}final"], int(arrays[f"{SWEEP}index"])
    return Tuned(
        index=index,
        final=final,
        at_edge=len(final) > 1 and index in (0, len(final) - 1),
        all_diverged=bool(np.isinf(final).all()),
    )
