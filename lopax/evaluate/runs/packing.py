"""Jobs as text, for other processes and machines.

A job travels as plain JSON values: references to its optimizer and its problem, the
run's settings, seeds and keys. The worker makes both anew and checks that they hash to
the same keys (a weights file may have changed in between).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import ConfigError, ResumeMismatch
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.refs import optimizer_spec, problem_of
from lopax.evaluate.runs.jobs import Failure, Job, attempt, portable
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.store import Record

ATTEMPTS = 3
"""How often a job is tried whose worker died."""


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


def execute(text: str, options: dict[str, Any]) -> list[Record] | Failure:
    """Runs a packed job in a worker: its records, or what went wrong."""
    return attempt(lambda: unpack(text), **options)
