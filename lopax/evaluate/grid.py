"""The resumable grid: run what a store does not have, and nothing twice.

A job is one optimizer on one problem with the seeds that are missing; it is one
compiled program and stores each seed as its own run. Kill the grid anywhere and start
it again: finished runs are found, damaged ones are run again.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from lopax._core.errors import ConfigError
from lopax._core.single_writer import single_writer, tidy
from lopax._version import __version__
from lopax.evaluate import cost
from lopax.evaluate.fingerprint import data_hash
from lopax.evaluate.run import run
from lopax.evaluate.specs import OptimizerSpec
from lopax.evaluate.store import Record, Store
from lopax.evaluate.study import (
    Problem,
    Study,
    check_grid,
    collect,
    records_of,
    run_identity,
    run_key,
)

EXECUTORS = ("processes", "ray")


class Job(NamedTuple):
    """One optimizer on one problem, for the seeds that have no result yet."""

    spec: OptimizerSpec
    problem: Problem
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Event:
    """Progress of a grid, for whoever shows it."""

    kind: str  # "skipped", "started", "progress", "done" or "failed"
    job: Job
    index: int  # of the job, from 0
    jobs: int
    fraction: float  # of this job
    message: str  # the error, or the duration


Listener = Callable[[Event], None]


@dataclasses.dataclass
class Outcome:
    """What a call of `run_grid` did."""

    done: int = 0  # runs made now
    found: int = 0  # runs that were there
    failed: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    """(optimizer, task, error) of the jobs that crashed."""


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


def run_grid(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    workers: int = 1,
    executor: str = "processes",
    gpus_per_job: float = 0.0,
    lanes: int = 16,
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
    - `lanes`: see `lopax.evaluate.run.run`.
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
    if lanes < 1 or workers < 1:
        raise ConfigError(f"lanes = {lanes}, workers = {workers}: must be at least 1")
    wanted = len(optimizers) * len(problems) * len(seeds)
    jobs = pending(store, optimizers, problems, seeds)
    if not jobs:  # a store that can only be read will do
        tidy(store.path)
        return Outcome(found=wanted)
    with single_writer(store.path):
        jobs = _unfinished(store, jobs)
        outcome = Outcome(found=wanted - sum(len(job.seeds) for job in jobs))
        book = Book(store, outcome, listener or (lambda event: None), len(jobs))
        options = {"lanes": lanes, "measure_cost": measure_cost}
        _run_jobs(book, jobs, options, workers, executor, gpus_per_job)
    return outcome


def _run_jobs(
    book: Book,
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
            _run_here(book, job, options)
    if away and executor == "ray":
        from lopax.evaluate.ray_workers import run_on_ray

        run_on_ray(book, away, options, gpus=gpus_per_job)
    elif away:
        from lopax.evaluate.workers import run_in_processes

        run_in_processes(book, away, workers, options)


def portable(job: Job) -> bool:
    """Whether another process can make this job's optimizer and problem."""
    return job.spec.reference is not None and job.problem.reference is not None


class Book:
    """Keeps the store, the outcome and the listener of one grid in step."""

    def __init__(self, store: Store, outcome: Outcome, listener: Listener, jobs: int):
        self.store, self.outcome, self.jobs = store, outcome, jobs
        self._listener, self._order = listener, {}

    def tell(self, kind: str, job: Job, fraction: float = 0.0, text: str = "") -> None:
        name = (job.spec.name, job.problem.name)
        index = self._order.setdefault(name, len(self._order))
        self._listener(Event(kind, job, index, self.jobs, fraction, text))

    def done(self, job: Job, records: Sequence[Record], seconds: float) -> None:
        for record in records:
            self.store.put(*record)
        self.outcome.done += len(records)
        self.tell("done", job, 1.0, f"{seconds:.1f} s")

    def failed(self, job: Job, message: str, details: str = "") -> None:
        note_failure(self.store, job, message)
        self.outcome.failed.append((job.spec.name, job.problem.name, message))
        self.tell("failed", job, 1.0, details or message)


def _run_here(book: Book, job: Job, options: dict[str, Any]) -> None:
    book.tell("started", job)
    started = time.perf_counter()
    try:
        records = run_job(
            job,
            progress=lambda done, total: book.tell("progress", job, done / total),
            **options,
        )
    except (Exception, SystemExit) as error:  # a user's file may call exit()
        book.failed(job, described(error), traceback.format_exc())
    else:
        book.done(job, records, time.perf_counter() - started)


def described(error: BaseException) -> str:
    """An error of a job as text."""
    return f"{type(error).__name__}: {error}"


def run_job(
    job: Job,
    *,
    lanes: int = 16,
    measure_cost: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Runs one job; one record per seed."""
    task = job.problem.make()
    config = job.problem.config
    lanes = lanes if job.problem.lanes is None else job.problem.lanes
    result = run(job.spec, task, config, job.seeds, lanes=lanes, progress=progress)
    price: dict[str, Any] | None = None
    if measure_cost:
        price = cost.measure(job.spec, task, config.num_steps)._asdict()
    return records_of(
        job.spec,
        job.problem,
        job.seeds,
        result,
        cost=price,
        compile_seconds=result.compile_seconds,
        run_seconds=result.run_seconds,
        data=data_hash(task),
        machine={
            "device": cost.device_name(),
            "jax": jax.__version__,
            "optax": optax.__version__,
            "lopax": __version__,
        },
    )


def note_failure(store: Store, job: Job, message: str) -> None:
    """Leaves a note in the store for each seed of a job that crashed."""
    for seed in job.seeds:
        identity = run_identity(job.spec, job.problem, seed)
        key = run_key(job.spec, job.problem, seed)
        store.put_failure(key, {"identity": identity}, message[:2000])


def run_study(
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    title: str = "Optimizer comparison",
    **options: Any,
) -> tuple[Study, Outcome]:
    """`run_grid`, then `collect`: whatever is missing is a hole of the study."""
    outcome = run_grid(store, optimizers, problems, seeds, **options)
    return collect(store, optimizers, problems, seeds, title), outcome
