"""The resumable grid: run what a store does not have, and nothing twice.

A job is one optimizer on one problem with the seeds that are missing; it is one
compiled program and stores each seed as its own run. Kill the grid anywhere and start
it again: finished runs are found, damaged ones are run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lopax._core.errors import ConfigError
from lopax._core.renamed import renamed
from lopax._core.single_writer import single_writer, tidy
from lopax.evaluate.problem import Problem, check_grid
from lopax.evaluate.runs.jobs import (
    GridReporter,
    Job,
    Listener,
    Outcome,
    attempt,
    portable,
)
from lopax.evaluate.runs.ray_workers import run_on_ray
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.store import Store
from lopax.evaluate.runs.workers import run_in_processes
from lopax.evaluate.specs import OptimizerSpec

EXECUTORS = ("processes", "ray")


def pending(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
) -> list[Job]:
    """The jobs that still have to run; damaged files count as not there."""
    check_grid(optimizers, problems, seeds)
    wanted = [Job(s, p, tuple(map(int, seeds))) for p in problems for s in optimizers]
    return _unfinished(store, wanted)


def _unfinished(store: Store, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the seeds that have no result."""
    found = []
    for spec, problem, seeds in jobs:
        missing = tuple(
            seed
            for seed in seeds
            if store.status(run_key(spec, problem, seed)) != "complete"
        )
        if missing:
            found.append(Job(spec, problem, missing))
    return found


@renamed(lanes="vmap_size")
def run_grid(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    workers: int = 1,
    executor: str = "processes",
    gpus_per_job: float = 0.0,
    vmap_size: int = 16,
    measure_cost: bool = True,
    listener: Listener | None = None,
) -> Outcome:
    """Runs all missing jobs.

    A job that raises is noted in the store and counted, and the grid goes on; Ctrl-C
    ends it at once, with everything finished so far kept.

    **Arguments:**

    - `workers`: processes that run jobs at the same time. Jobs of optimizers or
        problems that only exist in this process (no `reference`) run here, first.
    - `executor`: "processes", or "ray" for a Ray cluster (`workers` then says
        nothing: the cluster has as many as it has cores), with `gpus_per_job`.
    - `vmap_size`: see `lopax.evaluate.runs.run.run`.
    - `measure_cost`: also time single steps (a few seconds a job). With several
        workers the times are those of a busy machine.
    - `listener`: called with an `Event` whenever something happens.

    Raises `ConfigError` for an unknown executor, `FolderInUse` if another process
    writes into the store, `MissingExtra` without ray.
    """
    if executor not in EXECUTORS:
        raise ConfigError(
            f"executor = {executor!r}: must be one of {', '.join(EXECUTORS)}"
        )
    if vmap_size < 1 or workers < 1:
        raise ConfigError(
            f"vmap_size = {vmap_size}, workers = {workers}: must be at least 1"
        )
    wanted = len(optimizers) * len(problems) * len(seeds)
    jobs = pending(store, optimizers, problems, seeds)
    if not jobs:  # a store that can only be read will do
        tidy(store.path)
        return Outcome(found=wanted)
    with single_writer(store.path):
        jobs = _unfinished(store, jobs)
        outcome = Outcome(found=wanted - sum(len(job.seeds) for job in jobs))
        tell = listener or (lambda event: None)
        reporter = GridReporter(store, outcome, tell, len(jobs))
        options = {"vmap_size": vmap_size, "measure_cost": measure_cost}
        _run_jobs(reporter, jobs, options, workers, executor, gpus_per_job)
    return outcome


def _run_jobs(
    reporter: GridReporter,
    jobs: Sequence[Job],
    options: dict[str, Any],
    workers: int,
    executor: str,
    gpus_per_job: float,
) -> None:
    """Those that can travel elsewhere, if there is an elsewhere; the others here."""
    elsewhere = workers > 1 or executor == "ray"
    away = [job for job in jobs if elsewhere and portable(job)]
    for job in jobs:
        if not elsewhere or not portable(job):
            _run_here(reporter, job, options)
    if away and executor == "ray":
        run_on_ray(reporter, away, options, gpus=gpus_per_job)
    elif away:
        run_in_processes(reporter, away, workers, options)


def _run_here(reporter: GridReporter, job: Job, options: dict[str, Any]) -> None:
    reporter.tell("started", job)
    started = time.perf_counter()
    found = attempt(
        lambda: job,
        progress=lambda done, total: reporter.tell("progress", job, done / total),
        **options,
    )
    reporter.finished(job, found, time.perf_counter() - started)
