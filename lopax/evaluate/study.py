"""A study: which optimizers on which tasks with which seeds, and its results.

`Problem` names a task together with how long to train it; `Study` collects the stored
runs into cells, one per (optimizer, task). Missing runs stay visible: a cell is either
complete over all seeds or not there, and every aggregate asks for complete cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lopax._core.config import config_hash, to_dict
from lopax._core.errors import (
    ConfigError,
    FileFormatError,
    IncompleteResults,
    ResumeMismatch,
)
from lopax._core.task import Task
from lopax.evaluate.run import READ_OUT, RunConfig, RunResult
from lopax.evaluate.specs import OptimizerSpec, check_unique
from lopax.evaluate.store import FORMAT, Record, Store
from lopax.evaluate.tuning import Tuned, tune

SWEEP = "sweep:"
"""Begins the names of the arrays that only reduced runs have: the curves of one
learning rate, and what the whole sweep found (`lopax.evaluate.shipped`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A task to train, how to make it, and for how long."""

    name: str
    make: Callable[[], Task]
    """Called in the process that runs it; may load data."""
    config: RunConfig
    version: str = "1"
    """Changes whenever the task's definition does; part of the run's key."""
    note: str = ""
    passes_below: float | None = None
    """For pass/fail problems: the final loss that counts as solved."""
    lanes: int | None = None
    """Training runs side by side, where the default does not suit; not in the key."""
    reference: str | None = None
    """A text that makes the same problem in another process (`lopax.evaluate.refs`);
    None if only this process can run it."""


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
    result: RunResult,
    **header: Any,
) -> list[Record]:
    """A result as one record per seed, ready for a store."""
    records = []
    for i, seed in enumerate(seeds):
        arrays = {
            "train": result.train[i],
            "valid": result.valid[i],
            "test": result.test[i],
            "nonfinite": result.nonfinite[i],
            "updates": result.updates[i],
            "diverged": result.diverged[i],
            "eval_steps": result.eval_steps,
            **{f"metric:{k}": v[i] for k, v in result.metrics.items()},
        }
        identity = run_identity(spec, problem, seed)
        full = {"identity": identity, **header}
        records.append(Record(run_key(spec, problem, seed), full, arrays))
    return records


class Cell(NamedTuple):
    """All runs of one optimizer on one task: S seeds, L learning rates."""

    train: NDArray[np.float32]  # [S, L, T]
    valid: NDArray[np.float32]  # [S, L, E]
    test: NDArray[np.float32]  # [S, L, E]
    metrics: dict[str, NDArray[np.float32]]  # each [S, L, E]
    nonfinite: NDArray[np.int32]  # [S, L]
    updates: NDArray[np.int32]  # [S, L]
    diverged: NDArray[np.bool_]  # [S, L]
    eval_steps: NDArray[np.int64]  # [E]
    headers: tuple[Mapping[str, Any], ...]  # S of them
    sweep: Tuned | None = None  # if L = 1 stands for the best rate of a larger sweep

    def best(self) -> tuple[Tuned, int]:
        """The sweep over learning rates, and where its best rate is on the L axis."""
        if self.sweep is not None:
            return self.sweep, 0
        tuned = tune(self.train, self.diverged, read_out=self.read_out)
        return tuned, tuned.index

    @property
    def read_out(self) -> NDArray[np.float32] | None:
        """[S, L] final training losses of an optimizer that is judged by an average of
        its parameters; None if the training curve says it all."""
        values = self.metrics.get(READ_OUT)
        return None if values is None else values[..., -1]

    @property
    def cost(self) -> Mapping[str, Any] | None:
        """The measured cost, from the first run that has one."""
        return next((h["cost"] for h in self.headers if h.get("cost")), None)


class Hole(NamedTuple):
    """A run that is not there, and why."""

    optimizer: str
    task: str
    seed: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Results of a grid. Build one with `collect`."""

    title: str
    optimizers: tuple[OptimizerSpec, ...]
    problems: tuple[Problem, ...]
    seeds: tuple[int, ...]
    cells: Mapping[tuple[str, str], Cell]
    holes: tuple[Hole, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.problems)

    @property
    def complete_tasks(self) -> tuple[str, ...]:
        """Tasks for which every optimizer has all seeds."""
        broken = {hole.task for hole in self.holes}
        return tuple(t for t in self.tasks if t not in broken)

    def cell(self, optimizer: str, task: str) -> Cell:
        """Raises `IncompleteResults` if any run of the cell is missing."""
        try:
            return self.cells[optimizer, task]
        except KeyError:
            raise IncompleteResults(
                f"no complete results for {optimizer!r} on {task!r}; run the grid "
                "again, or leave the task out"
            ) from None

    def spec(self, optimizer: str) -> OptimizerSpec:
        for spec in self.optimizers:
            if spec.name == optimizer:
                return spec
        raise IncompleteResults(f"{optimizer!r} is not among the optimizers compared")


def collect(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    title: str = "Optimizer comparison",
) -> Study:
    """Reads a grid's runs from a store; what is missing or damaged becomes a `Hole`."""
    check_grid(optimizers, problems, seeds)
    cells, holes = {}, []
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
                holes.append(Hole(spec.name, problem.name, int(seed), reason))
            if len(records) == len(seeds):
                if len({r.arrays["train"].shape for r in records}) > 1:
                    reason = "reduced runs beside full ones: delete the reduced"
                    holes.append(Hole(spec.name, problem.name, int(seeds[0]), reason))
                    continue
                cells[spec.name, problem.name] = _cell(records)
    for problem in problems:
        _check_same_data(problem.name, cells)
    return Study(
        title=title,
        optimizers=tuple(optimizers),
        problems=tuple(problems),
        seeds=tuple(int(s) for s in seeds),
        cells=cells,
        holes=tuple(holes),
    )


def check_grid(
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
) -> None:
    """Raises `ConfigError` for an empty grid, repeated names or repeated seeds."""
    check_unique(list(optimizers))
    names = [p.name for p in problems]
    if not optimizers or not problems or not seeds:
        raise ConfigError(
            f"a grid of {len(optimizers)} optimizers, {len(problems)} tasks and "
            f"{len(seeds)} seeds has nothing to run; give at least one of each"
        )
    named: list[tuple[str, list[Any]]] = [("task", names), ("seed", list(seeds))]
    for what, values in named:
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ConfigError(f"{what} {twice[0]!r} is in the grid more than once")


def _check_same_data(task: str, cells: Mapping[tuple[str, str], Cell]) -> None:
    """Raises `ResumeMismatch` if runs of one task saw different data."""
    seen: dict[str, str] = {}
    for (optimizer, name), cell in cells.items():
        if name == task:
            for header in cell.headers:
                seen.setdefault(header.get("data", ""), optimizer)
    if len(seen) > 1:
        listed = ", ".join(f"{h or 'none'} ({o})" for h, o in seen.items())
        raise ResumeMismatch(
            f"results for task {task!r} come from different data: {listed}. Use the "
            "same data set for all of them, or separate stores"
        )


def _cell(records: Sequence[Any]) -> Cell:
    def stack(name: str) -> NDArray[Any]:
        return np.stack([r.arrays[name] for r in records])

    prefix = "metric:"
    metrics = [k for k in records[0].arrays if k.startswith(prefix)]
    return Cell(
        train=stack("train"),
        valid=stack("valid"),
        test=stack("test"),
        metrics={k.removeprefix(prefix): stack(k) for k in metrics},
        nonfinite=stack("nonfinite"),
        updates=stack("updates"),
        diverged=stack("diverged"),
        eval_steps=records[0].arrays["eval_steps"],
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
