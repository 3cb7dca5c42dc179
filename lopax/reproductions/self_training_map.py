"""R7 at size: over a map of regimes, is selection needed anywhere?

The claim (Metz et al., 2021, arXiv 2101.07367) is about a feedback loop. Where random
rules start well enough and their gradients are precise, each of them can train itself;
here both forms run from worse starts, with more noise, fewer members, harder tasks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lopax.reproductions.cases import Case, CaseResults, Measured
from lopax.reproductions.outcome import Check, Panel, Table
from lopax.reproductions.self_training import (
    SELF_TRAINING,
    SETTINGS,
    no_selection,
    population,
)

POINTS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "worse start": {"rule_settings": {"hidden": 16, "step_mult": 1e-4}},
    "more noise": {"pairs": 2},
    "two members": {"size": 2},
    "harder task": {"task": {"hidden": (16,), "batch_size": 32}},
    "worse start, more noise": {
        "rule_settings": {"hidden": 16, "step_mult": 1e-4},
        "pairs": 2,
    },
}
"""What differs from the settings of the map."""
EDGE: Mapping[str, Mapping[str, Any]] = {
    "start at 3e-4": {
        "rule_settings": {"hidden": 16, "step_mult": 3e-4},
        "outer_steps": 900,
    },
    "start at 3e-4, more noise": {
        "rule_settings": {"hidden": 16, "step_mult": 3e-4},
        "outer_steps": 900,
        "pairs": 2,
    },
    "three members": {"size": 3},
}
"""Between the points of the map where both forms catch fire and where neither does."""
AT_SIZE: Mapping[str, Any] = {
    **SETTINGS,
    "size": 5,
    "pairs": 8,
    "points": {name: dict(changes) for name, changes in POINTS.items()},
}
FORMS = {"population": population, "no selection": no_selection}
LIT, GAP = 1.0, 1.0
CURVE = "best score"


def measure(point: str, function: Callable[[Case], Measured], case: Case) -> Measured:
    """One form at one point; "lit at": the first outer step whose generation has a
    meta-loss below `LIT`, infinite if there is none."""
    settings = {**case.settings, **case.settings["points"][point]}
    found = function(case._replace(settings=settings))
    below = np.flatnonzero(np.asarray(found.curves[CURVE]) < LIT)
    at = int(below[0]) * settings["interval"] if len(below) else np.inf
    return found._replace(values={**found.values, "lit at": at})


def _name(point: str, form: str) -> str:
    return f"{point}: {form}"


def _points(results: CaseResults) -> list[str]:
    """Of the map these are results of."""
    return list(dict.fromkeys(name.split(": ")[0] for name in results.measured))


def _variants(
    points: Mapping[str, Any],
) -> dict[str, Callable[[Case], Measured]]:
    return {
        _name(point, form): functools.partial(measure, point, function)
        for point in points
        for form, function in FORMS.items()
    }


def _ends(results: CaseResults, point: str) -> tuple[np.ndarray, np.ndarray]:
    """Final scores [meta-seeds] of the population and of the control."""
    ours, control = (
        np.asarray(results.values(_name(point, form), "final best")) for form in FORMS
    )
    return ours, control


def judge(results: CaseResults) -> Sequence[Check]:
    points = _points(results)

    def found(holds: Callable[[np.ndarray, np.ndarray], bool]) -> list[str]:
        return [p for p in points if holds(*_ends(results, p))]

    needed = found(lambda a, b: bool((a < LIT).all() and not (b <= a + GAP).any()))
    ahead = found(lambda a, b: bool((a < b).all()))
    return (
        Check(
            f"somewhere on the map the population ends below {LIT:.1f} with every "
            f"meta-seed, more than {GAP:.1f} below the control without selection",
            bool(needed),
            ", ".join(needed) or "nowhere",
        ),
        Check(
            "everywhere on the map the population ends below the control, with every "
            "meta-seed",
            len(ahead) == len(points),
            f"at {len(ahead)} of {len(points)} points: {', '.join(ahead)}",
        ),
    )


def table(results: CaseResults) -> Sequence[Table]:
    """Where each form ended and when it caught fire, per meta-seed."""
    rows = []
    for point in _points(results):
        cells = []
        for form in FORMS:
            name = _name(point, form)
            for key, style in (("final best", ".2f"), ("lit at", ".0f")):
                values = results.values(name, key)
                cells.append(", ".join(f"{v:{style}}" for v in values))
        rows.append([point, *cells])
    columns = ["point", *(f"{f}, {x}" for f in FORMS for x in ("ends", "lit at"))]
    return [Table("the map, per meta-seed", columns, rows)]


def panels(results: CaseResults) -> Sequence[Panel]:
    """A panel for each point of the map."""
    return [
        Panel(
            f"{p}: {CURVE}",
            curves={f: results.curves(_name(p, f), CURVE) for f in FORMS},
            marks=(LIT,),
        )
        for p in _points(results)
    ]


SELF_TRAINING_AT_SIZE = dataclasses.replace(
    SELF_TRAINING,
    size="paper",
    claim="Somewhere between too easy and too hard, random learned optimizers catch "
    "fire only if those that do worse are replaced.",
    rule="a map of six regimes (worse start, more noise, both, fewer members, a harder "
    "task), 300 outer steps: in at least one the population ends below a meta-loss of "
    "1.0 with every meta-seed and more than 1.0 below as many rules that each train "
    "themselves; and in each it ends below them",
    minutes=20.0,
    settings=AT_SIZE,
    variants=_variants(POINTS),
    judge=judge,
    tables=table,
    panels=panels,
)

SELF_TRAINING_EDGE = dataclasses.replace(
    SELF_TRAINING_AT_SIZE,
    name="self_training_edge",
    size="small",
    rule="starts between the two of the map (900 outer steps, also with more noise), "
    "and three members (300): in at least one the population ends below a meta-loss of "
    "1.0 with every meta-seed and more than 1.0 below as many rules that each train "
    "themselves; and in each it ends below them",
    minutes=15.0,
    settings={**AT_SIZE, "points": {name: dict(v) for name, v in EDGE.items()}},
    variants=_variants(EDGE),
)
