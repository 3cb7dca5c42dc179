"""Reproductions whose variants are functions that measure, one call per meta-seed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopax._core.atomic import atomic_write
from lopax._core.config import config_hash
from lopax.reproductions.outcome import (
    Check,
    Outcome,
    Panel,
    Reproduction,
    Table,
)


class Case(NamedTuple):
    """What a variant is run with."""

    seed: int  # meta-seed
    share: float  # of the meta-training, in (0, 1]
    settings: Mapping[str, Any]  # the study's
    folder: Path  # the case's own, for checkpoints
    say: Callable[[str], None]

    def steps(self, full: int) -> int:
        """`full` outer steps, cut to the share; at least one."""
        return max(1, math.floor(self.share * full))


class Measured(NamedTuple):
    """What a variant found with one meta-seed."""

    values: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseResults:
    """All measurements: variant -> one per meta-seed."""

    measured: Mapping[str, Sequence[Measured]]

    def values(self, variant: str, measure: str) -> list[float]:
        """Per meta-seed."""
        return [float(m.values[measure]) for m in self.measured[variant]]

    def mean(self, variant: str, measure: str) -> float:
        """Over meta-seeds; not finite if one is not."""
        return float(np.mean(self.values(variant, measure)))

    def curves(self, variant: str, curve: str) -> list[list[float]]:
        """Per meta-seed."""
        return [list(m.curves[curve]) for m in self.measured[variant]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseStudy(Reproduction):
    """A reproduction made of functions that measure."""

    settings: Mapping[str, Any]
    """Every constant of the experiment: a change of one makes new results."""
    variants: Mapping[str, Callable[[Case], Measured]]
    judge: Callable[[CaseResults], Sequence[Check]]
    tables: Callable[[CaseResults], Sequence[Table]] = lambda results: ()
    """More tables than that of all measures."""
    panels: Callable[[CaseResults], Sequence[Panel]] | None = None
    """Of the plot; None: a panel for each measure and curve."""

    def found(
        self,
        folder: Path,
        meta_seeds: Sequence[int],
        share: float,
        say: Callable[[str], None],
    ) -> Outcome:
        measured: dict[str, list[Measured]] = {}
        for seed in meta_seeds:
            for variant, function in self.variants.items():
                key = config_hash([dict(self.settings), variant, seed, share], 8)
                where = folder / f"{_slug(variant)}-{seed}-{key}"
                case = Case(seed, share, self.settings, where, say)
                one = _once(function, case, f"{variant}, meta-seed {seed}")
                measured.setdefault(variant, []).append(one)
        return self.outcome(CaseResults(measured=measured))

    def outcome(self, results: CaseResults) -> Outcome:
        """The judge's checks, a table of means and ranges, a panel per measure."""
        first = {v: ms[0] for v, ms in results.measured.items()}
        measures = list(dict.fromkeys(k for m in first.values() for k in m.values))
        curves = list(dict.fromkeys(k for m in first.values() for k in m.curves))
        rows = [
            [v, *(_cell(results, v, k) if k in m.values else "" for k in measures)]
            for v, m in first.items()
        ]
        panels = [
            Panel(
                k,
                dots={v: results.values(v, k) for v in first if k in first[v].values},
            )
            for k in measures
        ] + [
            Panel(
                k,
                curves={v: results.curves(v, k) for v in first if k in first[v].curves},
            )
            for k in curves
        ]
        table = Table("means over meta-seeds", ["variant", *measures], rows)
        tables = [table, *self.tables(results)]
        if self.panels is not None:
            panels = self.panels(results)
        return Outcome(self.judge(results), tables, panels)


def _cell(results: CaseResults, variant: str, measure: str) -> str:
    values = results.values(variant, measure)
    mean = f"{np.mean(values):.3g}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.3g} to {max(values):.3g})"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)


def _once(function: Callable[[Case], Measured], case: Case, label: str) -> Measured:
    """The result of a case, measured unless its folder has it."""
    cache = case.folder / "measured.json"
    if cache.exists():
        return Measured(*json.loads(cache.read_text(encoding="utf-8")))
    case.say(label)
    case.folder.mkdir(parents=True, exist_ok=True)
    found = function(case)
    plain = Measured(
        {k: float(v) for k, v in found.values.items()},
        {k: [float(x) for x in xs] for k, xs in found.curves.items()},
    )
    with atomic_write(cache) as temporary:
        temporary.write_text(json.dumps(plain), encoding="utf-8")
    return plain
