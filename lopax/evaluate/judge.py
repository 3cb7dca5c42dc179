"""Problems, optimizers and a store in; a summary and a report out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax

from lopax._core.config import config_hash
from lopax._core.errors import ConfigError, IncompleteResults
from lopax.evaluate.problem import Problem
from lopax.evaluate.refs import optimizer_specs
from lopax.evaluate.report.pages import Paths, write_report
from lopax.evaluate.results.collect import collect, run_study
from lopax.evaluate.results.failures import failure_map
from lopax.evaluate.results.shipped import (
    Installed,
    check_first_losses,
    install,
)
from lopax.evaluate.results.study import Study
from lopax.evaluate.results.summary import Summary, summarise
from lopax.evaluate.runs.jobs import Outcome
from lopax.evaluate.runs.store import Store
from lopax.evaluate.runs.timing import add_costs
from lopax.evaluate.specs import OptimizerSpec


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
