"""Grid jobs in other processes of this machine.

Jobs go there as text (`packing`) and come back as records; only the process that owns
the store writes to it, so nothing is stored twice.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lopax._core.machine import usable_cores
from lopax._core.parent import end_with_parent
from lopax.evaluate.runs.jobs import Failure, GridReporter, Job
from lopax.evaluate.runs.packing import ATTEMPTS, execute, pack


def default_workers() -> int:
    """One process per usable core; one only if there is an accelerator, which a single
    process fills (and reserves)."""
    import jax

    if jax.default_backend() != "cpu":
        return 1
    return usable_cores()


def run_in_processes(
    reporter: GridReporter, jobs: Sequence[Job], workers: int, options: dict[str, Any]
) -> None:
    """Runs jobs in `workers` fresh processes, each at most `ATTEMPTS` times.

    A worker that dies (killed, out of memory) takes the pool with it; the jobs that
    had no result yet are given to a new pool. On Ctrl-C the workers are stopped.
    """
    left = {i: job for i, job in enumerate(jobs)}
    for attempt in range(1, ATTEMPTS + 1):
        died = _run_pool(reporter, left, workers, options)
        if not left:
            return
        if died and attempt == ATTEMPTS:
            gone = Failure(f"worker processes died {ATTEMPTS} times: {died}")
            for job in left.values():
                reporter.finished(job, gone, 0.0)


def _run_pool(
    reporter: GridReporter, left: dict[int, Job], workers: int, options: dict[str, Any]
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
            with _children_without_interrupts():
                future = pool.submit(execute, pack(job), options)
            futures[future] = index
            started[index] = time.perf_counter()
            reporter.tell("started", job)
        for future in concurrent.futures.as_completed(futures):
            index = futures[future]
            try:
                found = future.result()
            except BrokenProcessPool as error:
                died = str(error)
                continue
            job = left.pop(index)
            reporter.finished(job, found, time.perf_counter() - started[index])
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown(wait=not died, cancel_futures=True)
    return died


@contextlib.contextmanager
def _children_without_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C, which a terminal sends to
    all of them: not even before they can say so themselves (`_settle`)."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ.setdefault("NPROC", str(threads))  # XLA's thread pool
