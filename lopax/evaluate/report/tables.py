"""Tables of a report as text: the league, held-out data, seconds and costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lopax.evaluate.report.words import NEVER, interval_text, number, span
from lopax.evaluate.results import seconds
from lopax.evaluate.results.league import league
from lopax.evaluate.results.summary import Entry, Row, Summary
from lopax.statistics.aggregate import geometric_mean


def per_task(summary: Summary, cell: Any) -> dict[str, dict[str, Any]]:
    """task -> optimizer -> `cell(entry)`, for what was run."""
    return {
        task: {
            name: cell(summary.entries[name, task])
            for name in summary.optimizers
            if (name, task) in summary.entries
        }
        for task in summary.study.tasks
        if task in summary.target
    }


def held_out_tables(summary: Summary) -> dict[str, dict[str, dict[str, str]]]:
    """task -> optimizer -> {"valid": ..., "test": ..., metrics}, mean over seeds."""

    def cell(entry: Entry) -> dict[str, str]:
        held = entry.held_out
        shown = {
            "valid": held.valid,
            "test": held.test,
            "test at best valid": held.test_best,
            **entry.metrics,
        }
        with np.errstate(invalid="ignore"):
            return {k: number(float(np.mean(v))) for k, v in shown.items()}

    return per_task(summary, cell)


def generalisation_cells(row: Row) -> dict[str, str]:
    """Held-out scores, and speed-ups in seconds, of the main table."""
    shown: dict[str, str] = {}
    losses = {f: getattr(row.held_out, f) for f in _LOSSES}
    for field, interval in {**losses, "in_seconds": row.in_seconds}.items():
        shown[field] = "–" if interval is None else f"{interval.value:.3f}"
        shown[f"{field}_range"] = (
            "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
        )
    for field in ("accuracy", "accuracy_best"):
        interval = getattr(row.held_out, field)
        shown[field] = "–" if interval is None else f"{interval.value:+.1f}"
        shown[f"{field}_range"] = (
            "" if interval is None else f"{interval.low:+.1f} to {interval.high:+.1f}"
        )
    return shown


_LOSSES = ("valid", "valid_best", "test", "test_best")


def league_table(summary: Summary) -> list[dict[str, str]]:
    """The one-setting league, best first."""
    rows = []
    for s in league(summary):
        tuned, one = s.budget > 1, s.one_setting
        rows.append(
            {
                "optimizer": s.optimizer,
                "budget": f"{s.budget} rates" if tuned else "one setting",
                "held_out": "–" if s.held_out is None else f"{s.held_out.iqm:.3f}",
                "lowest": f"{one.lowest:.2f}",
                "rates": span(one.rates) if one.rates else "–",
                "hindsight": f"{s.hindsight.iqm:.3f}",
                "hindsight_rate": span(s.hindsight.rates) if tuned else "–",
                "tuned": f"{s.tuned.iqm:.3f}" if tuned else "–",
            }
        )
    return rows


def seconds_table(summary: Summary) -> dict[str, dict[str, str]]:
    """task -> optimizer -> median seconds to the reference's final loss."""
    found: dict[str, dict[str, str]] = {}
    for task in summary.target:
        row = {}
        for name in summary.optimizers:
            step = seconds.step_seconds(summary.study, name, task, summary.reference)
            if step is not None and (name, task) in summary.entries:
                steps = float(np.median(summary.entries[name, task].steps))
                row[name] = f"{steps * step:.3g}" if math.isfinite(steps) else NEVER
        if row:
            found[task] = row
    return found


def cost_table(summary: Summary) -> list[dict[str, str]]:
    """Geometric mean over tasks, relative to the reference on the same task."""
    table = []
    for name in summary.optimizers:
        ratios, times, held = [], [], []
        for task in summary.scored:
            group = summary.study.groups.get((name, task))
            own = seconds.ratio(summary.study, name, task, summary.reference)
            if own is not None and group is not None and group.cost is not None:
                ratios.append(own)
                times.append(group.cost["step_ms"])
                held.append(group.cost["bytes_per_parameter"])
        if not ratios:
            continue
        wall = summary.row(name).in_seconds
        table.append(
            {
                "optimizer": name,
                "step": span(times, 3),
                "ratio": f"{geometric_mean(ratios):.2f}",
                "ratios": span(ratios, 3),
                "bytes": f"{float(np.median(held)):.1f}",
                "wall": "–" if wall is None else interval_text(wall),
            }
        )
    return table
