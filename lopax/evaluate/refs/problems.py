"""Problems by name, by file, or as a user's own objects."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lopax._core.config import config_hash, to_dict
from lopax._core.errors import ConfigError, LopaxError, TaskError, UnknownName
from lopax._core.task import Task, check_task
from lopax.evaluate.fingerprint import task_fingerprint
from lopax.evaluate.problem import Problem, RunConfig
from lopax.tasks import from_functions
from lopax.tasks.suites import SUITES, Suite, suite
from lopax.tasks.table import TASKS, task


def suite_problems(
    which: str | Suite,
    *,
    num_steps: int | None = None,
    fraction: float | None = None,
    only_available: bool = False,
) -> list[Problem]:
    """The problems of a suite.

    **Arguments:**

    - `num_steps`: instead of each task's own number of updates.
    - `fraction`: of each task's own number of updates, for a first look.
    - `only_available`: leave out tasks whose data are not on this machine; otherwise
        running them fails with a message that says how to get the data.
    """
    if fraction is not None and (num_steps is not None or not 0.0 < fraction <= 1.0):
        raise ConfigError(
            f"fraction = {fraction!r}: must be a number > 0 and <= 1, and without "
            "num_steps"
        )
    chosen = suite(which) if isinstance(which, str) else which
    problems = []
    for member in chosen.tasks:
        if only_available and not member.available:
            continue
        steps = num_steps
        if steps is None:
            whole = member.num_steps
            steps = whole if fraction is None else max(1, round(fraction * whole))
        config = RunConfig(
            num_steps=steps,
            eval_every=min(chosen.eval_every, steps),
            eval_batches=chosen.eval_batches,
        )
        problems.append(
            Problem(
                name=member.name,
                make=member.make,
                config=config,
                version=member.version,
                note=member.about,
                passes_below=member.passes_below,
                vmap_size=member.vmap_size,
                reference=f"{chosen.name}/{member.name}"
                if isinstance(which, str)
                else None,
            )
        )
    return problems


def task_problem(name: str, config: RunConfig) -> Problem:
    """A registered task as a problem."""
    entry = TASKS[name]
    return Problem(
        name=name,
        make=lambda: task(name),
        config=config,
        version=config_hash(to_dict(entry.settings), length=8),
        note=entry.about,
        reference=name,
    )


def problem_of(reference: str, config: RunConfig) -> Problem:
    """The problem a text stands for: `SUITE/TASK`, a registered task, or a file."""
    suite_name, _, member = reference.partition("/")
    if suite_name in SUITES:
        found = {p.name: p for p in suite_problems(suite_name)}
        if member not in found:
            raise UnknownName(f"task of suite {suite_name!r}", member, found)
        return dataclasses.replace(found[member], config=config)
    return user_problem(reference, config)


def user_problem(
    problem: str | os.PathLike[str] | Task | Any,
    config: RunConfig,
    name: str | None = None,
) -> Problem:
    """A user's own problem.

    **Arguments:**

    - `problem`: a `Task`; or an object or module with `init(key)`, `loss(params,
      batch)` and, if the loss takes a batch, `batch(key)` or `data`; or the path of a
      Python file that defines these, or that defines `task`; or the name of a
      registered task.

    Its version is a fingerprint of what it computes. Raises `TaskError` if none of
    these fits, or the task breaks its contract.
    """
    if isinstance(problem, (str, os.PathLike)) and os.fspath(problem) in TASKS:
        found = task_problem(os.fspath(problem), config)
        return dataclasses.replace(found, name=name) if name else found
    if isinstance(problem, Task):
        task_made, default = problem, "problem"
    elif isinstance(problem, (str, os.PathLike)):
        path = Path(problem)
        default = path.stem.encode("utf-8", "replace").decode()
        with _users_code(path):
            task_made = _task_of(_import_file(path), str(path))
            check_task(task_made, name or default)
            version = task_fingerprint(task_made)
        note, reference = f"from {default}.py", str(path.resolve())
        return Problem(
            name=name or default,
            make=lambda: task_made,
            config=config,
            version=version,
            note=note,
            reference=reference,
        )
    else:
        task_made, default = _task_of(problem, type(problem).__name__), "problem"
    check_task(task_made, name or default)
    return Problem(
        name=name or default,
        make=lambda: task_made,
        config=config,
        version=task_fingerprint(task_made),
    )


def _task_of(source: Any, where: str) -> Task:
    """The task an object or module defines."""
    ready = getattr(source, "task", None)
    if isinstance(ready, Task):
        return ready
    if not hasattr(source, "init") or not hasattr(source, "loss"):
        raise TaskError(
            f"{where} defines neither `task` (a lopax.tasks.Task) nor `init` and "
            "`loss`. The shortest problem is\n"
            "    def init(key): return {'w': jax.random.normal(key, (10,))}\n"
            "    def loss(params): return jnp.sum(params['w'] ** 2)"
        )
    optional = {
        key: getattr(source, key)
        for key in ("batch", "data", "batch_size", "metrics", "loss_bound")
        if getattr(source, key, None) is not None
    }
    return from_functions(source.init, source.loss, **optional)


def _import_file(path: Path) -> Any:
    """Runs a Python file as a module of its own, registered nowhere else."""
    if path.suffix != ".py" or not os.path.isfile(path):
        raise TaskError(
            f"{path} is neither a registered task nor a Python file; see "
            "lopax.tasks.list_tasks()"
        )
    module_name = f"lopax_user_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        with _users_code(path):
            spec.loader.exec_module(module)
    except TaskError:
        del sys.modules[module_name]
        raise
    return module


@contextlib.contextmanager
def _users_code(path: Path) -> Iterator[None]:
    """Turns whatever a user's file raises, an exit included, into a `TaskError` that
    names the line."""
    try:
        yield
    except LopaxError:
        raise
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        where = f", line {lines[-1]}" if lines else ""
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            text = "it calls exit(); a problem only defines functions"
        raise TaskError(f"{path}{where}: {text}") from error
