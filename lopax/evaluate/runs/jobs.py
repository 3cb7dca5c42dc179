"""What a job is, how one is run, and where its results go.

Shared by those that run jobs: this process (`grid`), others on this machine
(`workers`) and others elsewhere (`ray_workers`).
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from lopax._version import __version__
from lopax.evaluate.fingerprint import data_hash
from lopax.evaluate.problem import Problem
from lopax.evaluate.runs import cost
from lopax.evaluate.runs.records import records_of, run_identity, run_key
from lopax.evaluate.runs.run import run
from lopax.evaluate.runs.store import Record, Store
from lopax.evaluate.specs import OptimizerSpec


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


class Failure(NamedTuple):
    """Why a job gave no results."""

    message: str
    details: str = ""  # the traceback, where there was one


def portable(job: Job) -> bool:
    """Whether another process can make this job's optimizer and problem."""
    return job.spec.reference is not None and job.problem.reference is not None


class GridReporter:
    """Keeps the store, the outcome and the listener of one grid in step."""

    def __init__(self, store: Store, outcome: Outcome, listener: Listener, jobs: int):
        self.store, self.outcome, self.jobs = store, outcome, jobs
        self._listener, self._order = listener, {}

    def tell(self, kind: str, job: Job, fraction: float = 0.0, text: str = "") -> None:
        name = (job.spec.name, job.problem.name)
        index = self._order.setdefault(name, len(self._order))
        self._listener(Event(kind, job, index, self.jobs, fraction, text))

    def finished(self, job: Job, found: list[Record] | Failure, seconds: float) -> None:
        """Keeps what a job gave, and tells of it."""
        if isinstance(found, Failure):
            note_failure(self.store, job, found)
            self.outcome.failed.append((job.spec.name, job.problem.name, found.message))
            self.tell("failed", job, 1.0, found.details or found.message)
            return
        for record in found:
            self.store.put(*record)
        self.outcome.done += len(found)
        self.tell("done", job, 1.0, f"{seconds:.1f} s")


def attempt(make: Callable[[], Job], **options: Any) -> list[Record] | Failure:
    """`run_job` of the job that `make` gives; an error is a result too.

    Errors travel between processes as text, because not every exception survives the
    way.
    """
    try:
        return run_job(make(), **options)
    except (Exception, SystemExit) as error:  # a user's file may call exit()
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def run_job(
    job: Job,
    *,
    vmap_size: int = 16,
    measure_cost: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Runs one job; one record per seed."""
    task = job.problem.make()
    config = job.problem.config
    vmap_size = vmap_size if job.problem.vmap_size is None else job.problem.vmap_size
    result = run(
        job.spec, task, config, job.seeds, vmap_size=vmap_size, progress=progress
    )
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


def note_failure(store: Store, job: Job, failure: Failure) -> None:
    """Leaves a note in the store for each seed of a job that crashed."""
    for seed in job.seeds:
        header = {
            "identity": run_identity(job.spec, job.problem, seed),
            "traceback": failure.details[-20_000:],
        }
        key = run_key(job.spec, job.problem, seed)
        store.put_failure(key, header, failure.message[:2000])
