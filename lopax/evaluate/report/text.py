"""What a report says: the numbers of a summary as text, for both templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lopax._version import __version__
from lopax.evaluate.report.tables import (
    cost_table,
    generalisation_cells,
    held_out_tables,
    league_table,
    per_task,
    seconds_table,
)
from lopax.evaluate.report.words import (
    NEVER,
    interval_text,
    number,
    p_value,
    points,
    span,
)
from lopax.evaluate.results import seconds
from lopax.evaluate.results.failures import FailureMap
from lopax.evaluate.results.summary import Entry, Row, Summary
from lopax.statistics.scores import FITTED


def report_context(
    summary: Summary,
    *,
    command: str = "",
    failures: FailureMap | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything both templates show, as text."""
    study = summary.study
    return {
        "title": study.title,
        "version": __version__,
        "reference": summary.reference,
        "headlines": [headline(summary, row) for row in _protagonists(summary)],
        "facts": _facts(summary),
        "warnings": _warnings(summary),
        "notes": list(notes),
        "rows": [_row(row) for row in summary.rows],
        "tasks": list(summary.scored),
        "left_out": dict(summary.left_out),
        "score_cells": per_task(summary, _score_cell),
        "time_cells": per_task(summary, _time_cell),
        "target": {t: number(v) for t, v in summary.target.items()},
        "held_out": held_out_tables(summary),
        "league": league_table(summary),
        "costs": cost_table(summary),
        "seconds": seconds_table(summary),
        "failures": failures,
        "failure_texts": failures.texts() if failures else [],
        "optimizers": _optimizer_table(summary),
        "problems": [
            {
                "name": p.name,
                "steps": f"{p.config.num_steps:,}",
                "version": p.version,
                "note": p.note,
            }
            for p in study.problems
        ],
        "seeds": ", ".join(map(str, study.seeds)),
        "machines": _machines(summary),
        "command": command,
        "missing": [h._asdict() for h in study.missing[:50]],
        "missing_count": len(study.missing),
    }


def _protagonists(summary: Summary) -> list[Row]:
    """Whom the headline is about: the learned ones, else the best baseline."""
    learned = [r for r in summary.rows if r.kind == "learned"]
    others = [r for r in summary.rows if r.optimizer != summary.reference]
    return learned[:3] or others[:1]


def headline(summary: Summary, row: Row) -> str:
    """One sentence: who, how much, against what, and how sure."""
    how = f"tuned over {row.budget} learning rates" if row.budget > 1 else "untuned"
    budget = summary.row(summary.reference).budget
    against = f"over {budget} learning rates" if budget > 1 else "at one learning rate"
    better = 0 if row.test is None else row.test.wins
    return (
        f"{row.optimizer}, {how}, scores {interval_text(row.iqm)} against "
        f"{summary.reference} tuned {against} (above 1 is better), with a lower final "
        f"loss on {better} of {len(summary.scored)} tasks: {row.verdict}. "
        + _on_held_out_data(summary, row)
    )


def _on_held_out_data(summary: Summary, row: Row) -> str:
    """What a headline says of test data, above all where it contradicts the rest."""
    end, best = row.held_out.test, row.held_out.test_best
    if end is None or best is None:
        return "Its held-out losses cannot be scored."
    said = (
        f"On test data it scores {interval_text(end)} at the end and "
        f"{interval_text(best)} if stopped at the best validation loss"
    )
    if row.held_out.accuracy is not None:
        said += f" ({points(row.held_out.accuracy)} points of accuracy)"
    if row.iqm.value > 1.0 and end.value < 1.0:
        sure = "" if end.high < 1.0 else ", it seems"
        said += f": it fits the training data better and generalises worse{sure}"
    worse = [t for t in summary.scored if _tests_worse(summary, row.optimizer, t)]
    if worse:
        count = f"{len(worse)} of {len(summary.scored)}"
        said += f"; on {count} tasks ({', '.join(worse[:3])}"
        said += ", ...)" if len(worse) > 3 else ")"
        said += " its training loss is lower and its test loss higher than "
        said += f"{summary.reference}'s"
    return said + "."


def _tests_worse(summary: Summary, optimizer: str, task: str) -> bool:
    """Whether it ends below the reference on training data and above it on test data,
    by the means over seeds."""
    own, other = (summary.entries[n, task] for n in (optimizer, summary.reference))
    return bool(
        optimizer != summary.reference
        and own.final.mean() < other.final.mean()
        and own.held_out.test.mean() > other.held_out.test.mean()
    )


def _facts(summary: Summary) -> list[tuple[str, str]]:
    study = summary.study
    steps = sorted({p.config.num_steps for p in study.problems})
    length = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    scored = f"{len(summary.scored)}"
    if summary.left_out:
        scored += f" of {len(study.tasks)}"
    return [
        ("optimizers", str(len(study.optimizers))),
        ("tasks scored", scored),
        ("seeds", str(len(study.seeds))),
        ("updates a run", length),
        ("reference", f"{summary.reference}, tuned"),
    ]


def _warnings(summary: Summary) -> list[str]:
    found = []
    study = summary.study
    if study.missing:
        total = len(study.optimizers) * len(study.tasks) * len(study.seeds)
        found.append(
            f"Missing: {len(study.missing)} of {total} runs, listed at the end. Tasks "
            "with a missing run are left out of every aggregate."
        )
    found += [f"Left out: {task} ({why})." for task, why in summary.left_out.items()]
    edges: dict[str, list[str]] = {}
    for (name, task), entry in summary.entries.items():
        if entry.tuned.at_edge and not entry.tuned.all_diverged:
            edges.setdefault(name, []).append(task)
    for name, tasks in edges.items():
        found.append(
            f"{name}: the best learning rate is the end of its grid on "
            f"{len(tasks)} of {len(study.tasks)} tasks; it might do better beyond."
        )
    fitted = [t for t in summary.scored if _nearly_fitted(summary, t)]
    if fitted:
        found.append(
            f"Tuned {summary.reference} ends below {100 * FITTED:g} % of the initial "
            f"loss on {', '.join(fitted)}: the training data are all but fitted. Below "
            "that, losses count by their logarithm; the held-out results say more."
        )
    busy = seconds.conditions(study)
    if busy:
        found.append(busy)
    if len(study.seeds) < 3:
        found.append(
            f"Only {len(study.seeds)} seed(s): intervals are not to be trusted."
        )
    return found


def _nearly_fitted(summary: Summary, task: str) -> bool:
    return summary.target[task] < FITTED * summary.start[task]


def _row(row: Row) -> dict[str, Any]:
    tested = row.test
    return {
        "optimizer": row.optimizer,
        "kind": row.kind,
        "budget": f"{row.budget} rates" if row.budget > 1 else "none",
        "runs": row.runs,
        "iqm": f"{row.iqm.value:.3f}",
        "iqm_range": f"{row.iqm.low:.3f} to {row.iqm.high:.3f}",
        "median": f"{row.median.value:.3f}",
        "median_range": f"{row.median.low:.3f} to {row.median.high:.3f}",
        "mean": f"{row.mean.value:.3f}",
        "mean_range": f"{row.mean.low:.3f} to {row.mean.high:.3f}",
        "gap": f"{row.optimality_gap.value:.3f}",
        "gap_range": f"{row.optimality_gap.low:.3f} to {row.optimality_gap.high:.3f}",
        "speedup": f"{row.speedup.value:.2f}",
        "speedup_range": f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
        "beats": "–" if row.beats is None else f"{100 * row.beats.value:.0f} %",
        "p_runs": "–" if tested is None else p_value(tested.p_runs),
        "p_tasks": "–" if tested is None else p_value(tested.p_tasks),
        "wins": "–" if tested is None else f"{tested.wins} of {tested.tasks}",
        "seeds_needed": "–"
        if tested is None or tested.seeds_needed is None
        else f"{tested.seeds_needed:,}",
        **generalisation_cells(row),
        "diverged": row.diverged,
        "verdict": row.verdict,
    }


def _score_cell(entry: Entry) -> dict[str, Any]:
    gone = int(entry.diverged.sum())
    if np.isnan(entry.score).any():
        return {"text": "undefined", "detail": "no ratio", "tint": 0.0, "gone": gone}
    value = float(entry.score.mean())
    # Tint by log score: 1.25 and 0.8 are equally far from even.
    tint = max(-1.0, min(1.0, math.log(max(value, 1e-3)) / math.log(1.5)))
    spread = f"{entry.score.min():.2f} to {entry.score.max():.2f}"
    if gone:
        spread = f"{gone} of {len(entry.score)} diverged"
    return {"text": f"{value:.2f}", "detail": spread, "tint": tint, "gone": gone}


def _time_cell(entry: Entry) -> dict[str, Any]:
    arrived = np.isfinite(entry.steps)
    total = len(entry.steps)
    if not arrived.any():
        return {"text": NEVER, "detail": f"0 of {total} seeds"}
    middle = float(np.median(entry.steps))
    text = f"{middle:,.0f}" if math.isfinite(middle) else NEVER
    return {"text": text, "detail": f"{int(arrived.sum())} of {total} seeds"}


def _optimizer_table(summary: Summary) -> list[dict[str, Any]]:
    table = []
    for name in summary.optimizers:
        spec = summary.study.spec(name)
        rates = spec.learning_rates
        chosen = [
            summary.entries[name, t].rate
            for t in summary.study.tasks
            if (name, t) in summary.entries
        ]
        known = [r for r in chosen if r is not None]
        hidden = ("weights", "config_hash")
        table.append(
            {
                "name": name,
                "kind": spec.kind,
                "rates": f"{len(rates)}: {min(rates):g} to {max(rates):g}"
                if rates
                else "none",
                "chosen": span(known) if known else "–",
                "weights": spec.settings.get("weights", "–"),
                "settings": ", ".join(
                    f"{k} = {v}"
                    for k, v in spec.settings.items()
                    if k not in hidden and v not in ({}, None)
                ),
                "note": spec.note,
            }
        )
    return table


def _machines(summary: Summary) -> list[str]:
    found = set()
    for group in summary.study.groups.values():
        for header in group.headers:
            machine = header.get("machine", {})
            if machine:
                found.add(", ".join(f"{k} {v}" for k, v in sorted(machine.items())))
    return sorted(found)
