"""Optimizers on a user's own problem, or on a suite, in one call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax

from lopax._core.config import config_hash
from lopax._core.errors import ConfigError, IncompleteResults
from lopax.evaluate.problem import Problem, RunConfig
from lopax.evaluate.refs import optimizer_specs, suite_problems, user_problem
from lopax.evaluate.report.pages import Paths, write_report
from lopax.evaluate.results.collect import collect, run_study
from lopax.evaluate.results.failures import failure_map
from lopax.evaluate.results.shipped import (
    Installed,
    archive_of,
    check_first_losses,
    install,
)
from lopax.evaluate.results.study import Study
from lopax.evaluate.results.summary import Summary, summarise
from lopax.evaluate.runs.jobs import Listener, Outcome
from lopax.evaluate.runs.store import Store
from lopax.evaluate.runs.timing import add_costs
from lopax.evaluate.specs import OptimizerSpec
from lopax.tasks.suites import Suite


class Comparison(NamedTuple):
    """What `compare` found."""

    summary: Summary
    outcome: Outcome
    report: Paths | None
    shipped: Installed | None = None  # tuned baselines that came with the package

    def __str__(self) -> str:
        lines = [
            f"{row.optimizer:<24} {row.iqm.value:6.3f}  "
            f"[{row.iqm.low:.3f}, {row.iqm.high:.3f}]  {row.verdict}"
            for row in self.summary.rows
        ]
        if self.report is not None:
            lines.append(f"report: {self.report.html}")
        return "\n".join(lines)


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
    lanes: int = 16,
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
        lanes=lanes,
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


def judge(
    problems: Sequence[Problem],
    optimizers: Sequence[str | OptimizerSpec | optax.GradientTransformation],
    *,
    seeds: int | Sequence[int] = 3,
    reference: str = "adam",
    folder: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | Store | None = None,
    title: str = "Optimizer comparison",
    notes: Sequence[str] = (),
    command: str = "",
    archive: Path | None = None,
    time_all: bool = False,
    **options: Any,
) -> Comparison:
    """What `compare` and `bench` share: run what is missing, summarise, report.

    `archive` holds tuned baselines; `time_all`: also time runs that were made without
    (those that came with lopax), some seconds each; `options` go to
    `lopax.evaluate.runs.grid.run_grid`.
    """
    specs = optimizer_specs(list(optimizers))
    if reference not in [s.name for s in specs]:
        specs += optimizer_specs([reference])
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if store is None:
        if folder is None:
            raise ConfigError(
                "folder=None and store=None: there is nowhere to keep results; give one"
            )
        store = Path(folder) / "results"
    if not isinstance(store, Store):
        store = Store(store)
    notes = [*notes, *_other_definitions(store, specs, list(problems))]
    installed = None
    if archive is not None:
        installed = install(archive, store, specs, list(problems), chosen)
        notes = [*notes, *_provenance(installed)]
    study, outcome = run_study(
        store, specs, list(problems), chosen, title=title, **options
    )
    if time_all and add_costs(store, specs, list(problems), chosen):
        study = collect(store, specs, list(problems), chosen, title)
    check_first_losses(study)
    study, crashed = without_crashed(study, reference)
    summary = summarise(study, reference, allow_missing=True)
    paths = None
    if folder is not None:
        graded = any(p.passes_below is not None for p in study.problems)
        paths = write_report(
            folder,
            summary,
            command=command,
            failures=failure_map(study) if graded else None,
            notes=[*notes, *crashed],
        )
    return Comparison(summary, outcome, paths, installed)


def _other_definitions(
    store: Store, specs: Sequence[OptimizerSpec], problems: Sequence[Problem]
) -> list[str]:
    """Says which optimizers have runs in the store under the same name that were made
    with other settings: those have other keys and are never mixed in."""
    wanted = {spec.name: config_hash(spec.identity) for spec in specs}
    tasks, found = {p.name for p in problems}, set()
    for _, identity in store.identities():
        name = identity["optimizer"]["name"]
        other = wanted.get(name) not in (None, config_hash(identity["optimizer"]))
        if other and identity["task"]["name"] in tasks:
            found.add(name)
    if not found:
        return []
    return [
        f"The store also holds runs of other definitions of {', '.join(sorted(found))} "
        "(other settings or learning rates). They have other keys and are not used."
    ]


def _provenance(installed: Installed) -> list[str]:
    """What a report says about baselines that came with the package."""
    said = []
    if installed.used:
        names = sorted({optimizer for optimizer, _ in installed.used})
        said.append(
            f"Tuned on another machine and shipped with lopax: {', '.join(names)}. "
            "Their costs were not measured here."
        )
    for reason in dict.fromkeys(installed.refused.values()):
        pairs = [p for p, why in installed.refused.items() if why == reason]
        listed = ", ".join(f"{o} on {t}" for o, t in pairs[:5])
        more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
        said.append(f"Shipped results not used, because {reason}: {listed}{more}.")
    return said


def without_crashed(study: Study, reference: str) -> tuple[Study, list[str]]:
    """Leaves out optimizers that have not one result, and says so in words.

    Raises `IncompleteResults` if the reference is one of them.
    """
    gone: dict[str, str] = {}
    for spec in study.optimizers:
        if not any((spec.name, t) in study.groups for t in study.tasks):
            reasons = [h.reason for h in study.missing if h.optimizer == spec.name]
            gone[spec.name] = reasons[0] if reasons else "not run"
    if reference in gone:
        raise IncompleteResults(
            f"the reference {reference!r} has no result: {gone[reference]}"
        )
    kept = dataclasses.replace(
        study,
        optimizers=tuple(s for s in study.optimizers if s.name not in gone),
        missing=tuple(h for h in study.missing if h.optimizer not in gone),
    )
    return kept, [f"Not in this report: {name} ({why})." for name, why in gone.items()]


def _problems(problem: Any, config: RunConfig, name: str | None) -> list[Problem]:
    if isinstance(problem, (list, tuple)):
        if name is not None:
            raise ConfigError("name= is for one problem; a list was given")
        return [user_problem(p, config, name=None) for p in problem]
    return [user_problem(problem, config, name)]
