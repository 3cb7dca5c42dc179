"""Grid jobs in other processes.

A job travels as plain JSON values: references to its optimizer and its problem, the
run's settings, seeds and keys. The worker makes both anew, checks that they hash to
the same keys (a weights file may have changed in between), and sends back records;
only the process that owns the store writes to it, so nothing is stored twice.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import ConfigError, ResumeMismatch
from lopax._core.machine import usable_cores
from lopax._core.parent import end_with_parent
from lopax.evaluate.grid import Book, Job, described, portable, run_job
from lopax.evaluate.run import RunConfig
from lopax.evaluate.store import Record
from lopax.evaluate.study import run_key

ATTEMPTS = 3
"""How often a job is tried whose worker process died."""


def default_workers() -> int:
    """One process per usable core; one only if there is an accelerator, which a single
    process fills (and reserves)."""
    import jax

    if jax.default_backend() != "cpu":
        return 1
    return usable_cores()


def pack(job: Job) -> str:
    """A job as JSON text; raises `ConfigError` if only this process can run it."""
    if not portable(job):
        raise ConfigError(
            f"{job.spec.name!r} on {job.problem.name!r} exists only in this process; "
            "use a name or a file for both, or workers=1"
        )
    keys = [run_key(job.spec, job.problem, seed) for seed in job.seeds]
    return json.dumps(
        {
            "optimizer": job.spec.reference,
            "problem": job.problem.reference,
            "name": job.problem.name,
            "config": to_dict(job.problem.config),
            "seeds": list(job.seeds),
            "keys": keys,
        }
    )


def unpack(text: str) -> Job:
    """The job of a text made by `pack`, perhaps by another process.

    Raises `ResumeMismatch` if optimizer or problem are not what they were there.
    """
    from lopax.evaluate.refs import optimizer_spec, problem_of

    packed = json.loads(text)
    config = from_dict(RunConfig, packed["config"])
    problem = problem_of(packed["problem"], config)
    problem = dataclasses.replace(problem, name=packed["name"])
    spec = optimizer_spec(packed["optimizer"])
    job = Job(spec, problem, tuple(packed["seeds"]))
    keys = [run_key(spec, problem, seed) for seed in job.seeds]
    if keys != packed["keys"]:
        raise ResumeMismatch(
            f"{packed['optimizer']!r} on {packed['problem']!r} is defined differently "
            "in this process than where the job was made; are weights, files and "
            "package versions the same?"
        )
    return job


def execute(text: str, options: dict[str, Any]) -> list[Record] | str:
    """Runs a packed job in a worker: its records, or what went wrong.

    Errors travel as text, because not every exception survives the way between
    processes.
    """
    try:
        return run_job(unpack(text), **options)
    except (Exception, SystemExit) as error:
        return described(error)


def run_in_processes(
    book: Book, jobs: Sequence[Job], workers: int, options: dict[str, Any]
) -> None:
    """Runs jobs in `workers` fresh processes, each at most `ATTEMPTS` times.

    A worker that dies (killed, out of memory) takes the pool with it; the jobs that
    had no result yet are given to a new pool. On Ctrl-C the workers are stopped.
    """
    left = {i: job for i, job in enumerate(jobs)}
    for attempt in range(1, ATTEMPTS + 1):
        died = _run_pool(book, left, workers, options)
        if not left:
            return
        if died and attempt == ATTEMPTS:
            for job in left.values():
                book.failed(job, f"worker processes died {ATTEMPTS} times: {died}")


def _run_pool(
    book: Book, left: dict[int, Job], workers: int, options: dict[str, Any]
) -> str:
    """One pool's worth of work; removes finished jobs from `left`. Returns why the
    pool died, or nothing."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(left)),
        mp_context=context,
        initializer=_settle,
        initargs=(max(1, usable_cores() // workers),),
    )
    started: dict[int, float] = {}
    died = ""
    try:
        futures = {}
        for index, job in left.items():
            futures[pool.submit(execute, pack(job), options)] = index
            started[index] = time.perf_counter()
            book.tell("started", job)
        for future in concurrent.futures.as_completed(futures):
            index = futures[future]
            try:
                found = future.result()
            except BrokenProcessPool as error:
                died = str(error)
                continue
            job = left.pop(index)
            if isinstance(found, str):
                book.failed(job, found)
            else:
                book.done(job, found, time.perf_counter() - started[index])
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown(wait=not died, cancel_futures=True)
    return died


def _stop(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    """Ends the workers without waiting for what they are doing."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _settle(threads: int) -> None:
    """Set up once per worker: its share of the cores, one thread for each operation
    (the workers are the parallelism), Ctrl-C is the parent's business, and the end of
    the parent is theirs."""
    import signal

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ.setdefault("NPROC", str(threads))  # XLA's thread pool
