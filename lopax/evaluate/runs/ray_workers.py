"""Grid jobs on a Ray cluster: the same packed jobs as `workers`, on many machines.

Jobs travel as JSON and come back as records; only the process that called writes to
the store. A node that dies takes nothing with it: its jobs are given to other nodes,
and a result counts once, when it is here. Nodes need lopax installed, and weights or
problem files under the same paths (a shared folder).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lopax._core.errors import MissingExtra
from lopax.evaluate.runs.jobs import Failure, GridReporter, Job
from lopax.evaluate.runs.packing import ATTEMPTS, execute, pack

_POLL = 1.0  # seconds; how long Ctrl-C may have to wait


def run_on_ray(
    reporter: GridReporter,
    jobs: Sequence[Job],
    options: dict[str, Any],
    *,
    gpus: float = 0.0,
) -> None:
    """Runs jobs as Ray tasks of one core each, each at most `ATTEMPTS` times.

    Uses the connection that is there (`ray.init` was called), else the cluster that
    `RAY_ADDRESS` names, else one on this machine. On Ctrl-C the tasks are cancelled.

    **Arguments:**

    - `gpus`: of each job; a fraction shares one among several.

    Raises `MissingExtra` if ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "running on a Ray cluster") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        _run(ray, reporter, jobs, options, gpus)
    finally:
        if ours:
            ray.shutdown()


def _run(
    ray: Any,
    reporter: GridReporter,
    jobs: Sequence[Job],
    options: dict[str, Any],
    gpus: float,
) -> None:
    # Retries are ours, so that they are counted as local workers count them.
    task = ray.remote(execute).options(
        num_cpus=1,
        num_gpus=gpus,
        max_retries=0,
        runtime_env={"env_vars": _environment(gpus)},
    )
    running: dict[Any, int] = {}
    attempts, started = [0] * len(jobs), [0.0] * len(jobs)

    def submit(index: int) -> None:
        attempts[index] += 1
        started[index] = time.perf_counter()
        running[task.remote(pack(jobs[index]), options)] = index

    try:
        for index, job in enumerate(jobs):
            submit(index)
            reporter.tell("started", job)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL)
            for reference in ready:
                index = running.pop(reference)
                job = jobs[index]
                try:
                    found = ray.get(reference)
                except ray.exceptions.RayError as error:
                    # The node or its worker died, or the result was lost with it.
                    if attempts[index] < ATTEMPTS:
                        submit(index)
                    else:
                        text = str(error).strip().partition("\n")[0]
                        gone = Failure(f"workers died {ATTEMPTS} times: {text}")
                        reporter.finished(job, gone, 0.0)
                    continue
                reporter.finished(job, found, time.perf_counter() - started[index])
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=True)
        raise


def _environment(gpus: float) -> dict[str, str]:
    """One thread per job: jobs are the parallelism."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    if gpus < 1.0:  # jobs that share a device must not each take most of its memory
        settings["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return settings
