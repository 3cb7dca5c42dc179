"""The report of a meta-training run: curves, settings and cost on one page."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lopax._core.config import config_hash, to_dict
from lopax._core.errors import FileFormatError
from lopax._core.jsonl import read_lines
from lopax.evaluate.report import family_tree, style
from lopax.evaluate.report.pages import template, write_page
from lopax.statistics.scores import smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_run_report(
    folder: str | os.PathLike[str], run: Any, target: str | os.PathLike[str]
) -> Path:
    """Writes the page of the run in `folder` (see `lopax.meta.loop`) to `target`.

    **Arguments:**

    - `run`: the run's configuration, a `lopax.meta.RunConfig`.

    Raises `FileFormatError` if the run has no metrics yet, `MissingExtra` if jinja2 or
    matplotlib is not installed.
    """
    from markupsafe import Markup

    folder, target = Path(folder), Path(target)
    metrics = _lines(folder / "metrics.jsonl", _NUMBERS)
    if not metrics:
        raise FileFormatError(f"{folder} has no metrics yet; let it train for a while")
    evaluations = _lines(folder / "evaluations.jsonl", ("step",))
    last = metrics[-1]
    inner = sum(line["inner_steps"] for line in metrics)
    figures = {"Meta-loss": curve_figure(metrics, ["loss"], "meta-loss")}
    for name, (title, label) in _NORMS.items():
        if any(name in line for line in metrics):
            figures[title] = curve_figure(metrics, [name], label, log=True)
    names = [k for k in (evaluations[0] if evaluations else {}) if k not in _NOT_LOSS]
    if names:
        figures["Validation tasks"] = curve_figure(
            evaluations, names, "final training loss", decay=0.0
        )
    if (folder / family_tree.LINEAGE).exists():
        figures["Family tree"] = family_tree.family_tree(
            family_tree.read_lineage(folder)
        )
    page = template("run.html.jinja", escape=True).render(
        title=f"Meta-training run {run.name}",
        facts={
            "architecture": run.architecture,
            "outer steps": f"{last['step']:,} of {run.total_steps:,}",
            "inner steps": f"{inner:,.0f}",
            "time": _duration(last["seconds"]),
            "inner steps/s": f"{inner / max(last['seconds'], 1e-9):,.0f}",
            "configuration": config_hash(run),
        },
        phases=_phases(metrics),
        figures={k: Markup(style.svg(f, k)) for k, f in figures.items()},
        settings=json.dumps(to_dict(run), indent=1),
    )
    write_page(target, page)
    return target


_NUMBERS = ("step", "loss", "inner_steps", "diverged", "seconds")
_NORMS = {
    "grad_norm": ("Meta-gradient norm", "global norm"),
    "distance": ("Distance of a search from its start", "norm of the mean's way"),
}
"""Metrics of a meta-gradient and of a search: title and label of their figures."""


def _lines(path: Path, numbers: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a log, null (not finite) as NaN.

    Raises `FileFormatError` if one has no phase or lacks a number.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        line = {k: math.nan if v is None else v for k, v in line.items()}
        values = [line.get(name) for name in numbers]
        if not all(isinstance(x, (int, float)) for x in values) or not isinstance(
            line.get("phase"), str
        ):
            raise FileFormatError(
                f"{path} is damaged: line {number} lacks its phase or one of "
                f"{', '.join(numbers)}"
            )
        found.append(line)
    return found


_NOT_LOSS = ("step", "phase", "seconds")


def curve_figure(
    lines: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    label: str,
    *,
    log: bool = False,
    decay: float = 0.9,
) -> Figure:
    """Curves over outer steps: the values, thin, and their moving average.

    Phases are told apart by a vertical line.
    """
    figure, axes = style.panel()
    steps = np.asarray([line["step"] for line in lines])
    for name, colour in zip(names, style.PALETTE, strict=False):
        values = np.asarray([line.get(name, np.nan) for line in lines], np.float64)
        if decay:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            values = smooth(values[None], decay)[0]
        axes.plot(steps, values, color=colour, linewidth=1.6, label=style.plain(name))
    for a, b in itertools.pairwise(lines):
        if a["phase"] != b["phase"]:
            axes.axvline(a["step"], color=style.FADED, linewidth=0.8, linestyle=":")
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("outer step")
    axes.set_ylabel(label)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=style.INK)
    return figure


def _phases(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """First and last meta-loss of each phase, averaged over a tenth of it."""
    rows = []
    for phase in dict.fromkeys(line["phase"] for line in metrics):
        own = [line for line in metrics if line["phase"] == phase]
        part = max(1, len(own) // 10)
        rows.append(
            {
                "phase": phase,
                "steps": str(own[-1]["step"] - own[0]["step"] + 1),
                "first": f"{np.mean([x['loss'] for x in own[:part]]):.4f}",
                "last": f"{np.mean([x['loss'] for x in own[-part:]]):.4f}",
                "diverged": f"{sum(x['diverged'] for x in own):,.0f}",
            }
        )
    return rows


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
