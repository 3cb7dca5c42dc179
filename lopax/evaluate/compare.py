"""Optimizers on a user's own problem, or on a suite, in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import optax

from lopax._core.errors import ConfigError
from lopax._core.renamed import renamed
from lopax.evaluate.judge import Comparison, judge
from lopax.evaluate.problem import Problem, RunConfig
from lopax.evaluate.refs import suite_problems, user_problem
from lopax.evaluate.results.shipped import (
    archive_of,
)
from lopax.evaluate.runs.jobs import Listener
from lopax.evaluate.runs.store import Store
from lopax.evaluate.specs import OptimizerSpec
from lopax.tasks.suites import Suite


@renamed(lanes="vmap_size")
def compare(
    problem: Any,
    optimizers: Sequence[str | OptimizerSpec | optax.GradientTransformation] = (
        "celo",
        "adam",
    ),
    *,
    num_steps: int = 1_000,
    seeds: int | Sequence[int] = 3,
    reference: str = "adam",
    folder: str | os.PathLike[str] | None = "comparison",
    store: str | os.PathLike[str] | Store | None = None,
    name: str | None = None,
    eval_every: int | None = None,
    workers: int = 1,
    executor: str = "processes",
    vmap_size: int = 16,
    measure_cost: bool = True,
    listener: Listener | None = None,
    command: str = "",
) -> Comparison:
    """Trains a problem with each optimizer and says which is better, and how surely.

        def init(key): return {"w": jax.random.normal(key, (10,))}
        def loss(params, batch): ...
        task = lopax.tasks.from_functions(init, loss, data=(x, y))
        print(lopax.evaluate.compare(task, ["celo", "adam", "muon"], num_steps=2_000))

    Finished runs are kept in the store and found again; a problem that changed is
    noticed and runs anew. Optimizers that crash are left out, with the error in the
    report.

    **Arguments:**

    - `problem`: a `Task`, an object or module with `init` and `loss`, the path of a
      Python file that defines them, the name of a registered task, or a list of these.
    - `optimizers`: names (see `lopax.evaluate.refs`), specs or optax transformations.
    - `num_steps`: updates of a run; what learned optimizers are told as well.
    - `seeds`: how many, or which.
    - `reference`: what scores are relative to; added if it is not among `optimizers`.
    - `folder`: where the report goes; None for no report.
    - `store`: where results go; default `folder`/results.
    - `workers`, `executor`: processes (or a Ray cluster) for problems given as a file
        or a name; see `lopax.evaluate.runs.grid.run_grid`.
    - `listener`: called with an `Event` whenever something happens.

    Raises `TaskError` for a problem that breaks its contract, `IncompleteResults` if
    the reference crashed or no task can be scored.
    """
    config = RunConfig(
        num_steps=num_steps,
        eval_every=max(1, num_steps // 20) if eval_every is None else eval_every,
    )
    problems = _problems(problem, config, name)
    title = f"Optimizers on {', '.join(p.name for p in problems[:3])}"
    return judge(
        problems,
        optimizers,
        seeds=seeds,
        reference=reference,
        folder=folder,
        store=store,
        title=title + (" and others" if len(problems) > 3 else ""),
        workers=workers,
        executor=executor,
        vmap_size=vmap_size,
        measure_cost=measure_cost,
        listener=listener,
        command=command,
    )


def bench(
    suite: str | Suite,
    optimizers: Sequence[str | OptimizerSpec | optax.GradientTransformation] = (
        "celo",
        "adam",
    ),
    *,
    num_steps: int | None = None,
    fraction: float | None = None,
    seeds: int | Sequence[int] = 3,
    only_available: bool = False,
    shipped: bool = True,
    title: str | None = None,
    notes: Sequence[str] = (),
    **options: Any,
) -> Comparison:
    """Runs a suite and reports on it.

    **Arguments:**

    - `suite`: a name from `lopax.tasks.suites.list_suites()`, or a `Suite`.
    - `num_steps`: instead of each task's own number of updates.
    - `fraction`: of each task's own number of updates, for a first look.
    - `only_available`: leave out tasks whose data are not on this machine, and say so
        in the report; otherwise they count as crashed.
    - `shipped`: take tuned baselines that come with the package, where they fit this
        machine's data (`lopax.evaluate.results.shipped`), instead of tuning them.
    - the others, and `options`: as for `compare`.

    Raises `ConfigError` if no task of the suite is available.
    """
    length = {"num_steps": num_steps, "fraction": fraction}
    everything = suite_problems(suite, **length)
    problems = everything
    if only_available:
        problems = suite_problems(suite, **length, only_available=True)
        there = {p.name for p in problems}
        absent = [p.name for p in everything if p.name not in there]
        if absent:
            notes = [
                *notes,
                f"Not run, because their data are not on this machine: "
                f"{', '.join(absent)}.",
            ]
    name = suite if isinstance(suite, str) else suite.name
    if not problems:
        raise ConfigError(
            f"suite {name!r}: the data of none of its tasks are on this machine; see "
            "lopax.data, or use the suite 'smoke', which needs none"
        )
    options = {"folder": f"bench-{name}", **options}
    return judge(
        problems,
        optimizers,
        seeds=seeds,
        archive=archive_of(name) if shipped else None,
        title=title or f"Optimizers on the suite {name}",
        notes=notes,
        **options,
    )


def _problems(problem: Any, config: RunConfig, name: str | None) -> list[Problem]:
    if isinstance(problem, (list, tuple)):
        if name is not None:
            raise ConfigError("name= is for one problem; a list was given")
        return [user_problem(p, config, name=None) for p in problem]
    return [user_problem(problem, config, name)]
