"""A run's key, and its result in the form of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lopax._core.config import config_hash, to_dict
from lopax.evaluate.problem import Problem
from lopax.evaluate.runs.store import FORMAT, Record
from lopax.evaluate.specs import OptimizerSpec
from lopax.statistics.curves import Curves


def run_identity(spec: OptimizerSpec, problem: Problem, seed: int) -> dict[str, Any]:
    """Everything that determines a run, as JSON values."""
    return {
        "format": FORMAT,
        "optimizer": to_dict(spec.identity),
        "task": {"name": problem.name, "version": problem.version},
        "run": to_dict(problem.config),
        "seed": int(seed),
    }


def run_key(spec: OptimizerSpec, problem: Problem, seed: int) -> str:
    """The run's key in a store."""
    return config_hash(run_identity(spec, problem, seed), length=20)


def records_of(
    spec: OptimizerSpec,
    problem: Problem,
    seeds: Sequence[int],
    result: Curves,
    **header: Any,
) -> list[Record]:
    """A result as one record per seed, ready for a store."""
    records = []
    for i, seed in enumerate(seeds):
        full = {"identity": run_identity(spec, problem, seed), **header}
        key = run_key(spec, problem, seed)
        records.append(Record(key, full, result.of_seed(i)))
    return records
