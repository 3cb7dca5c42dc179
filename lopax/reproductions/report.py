"""The written outcome of a reproduction: a table, a plot, pass or fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lopax._core.atomic import atomic_write, make_folder
from lopax._core.errors import MissingExtra
from lopax.reproductions.outcome import Outcome, Panel, Reproduction, Table

PER_ROW = 4


def write(study: Reproduction, found: Outcome, folder: Path, command: str) -> Path:
    """Writes report.md and report.png; returns the first."""
    make_folder(folder)
    _plot(study, found.panels, folder / "report.png")
    lines = [
        f"# {study.name}: {'pass' if found.passed else 'fail'}",
        "",
        study.claim,
        "",
        f"Source: {study.source}. Rule: {study.rule}.",
        "",
        f"`{command}`",
        "",
        "![a dot per variant and meta-seed](report.png)",
        "",
        "| check | found | |",
        "|---|---|---|",
        *(
            f"| {c.claim} | {c.found} | {'pass' if c.passed else 'FAIL'} |"
            for c in found.checks
        ),
        *(line for table in found.tables for line in _table(table)),
    ]
    path = folder / "report.md"
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _table(table: Table) -> list[str]:
    return [
        "",
        f"{table.title[:1].upper()}{table.title[1:]}:",
        "",
        f"| {' | '.join(table.columns)} |",
        "|" + "---|" * len(table.columns),
        *(f"| {' | '.join(row)} |" for row in table.rows),
    ]


def _plot(study: Reproduction, panels: Sequence[Panel], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "lopax reproduce") from None
    across = min(PER_ROW, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.0 * across + 1.0, 3.2 * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        if panel.curves:
            _curves(axis, panel.curves, panel.along)
        else:
            _dots(axis, panel.dots)
        for level in panel.marks:
            axis.axhline(level, color="0.5", lw=1, ls="--")
        axis.set_title(panel.title, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(f"{study.name} (one per meta-seed)", fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _wide(values: Sequence[float]) -> bool:
    """Whether positive values span enough to want a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20


def _dots(axis, values: Mapping[str, Sequence[float]]) -> None:
    """A column of dots per variant; values that are not finite sit at the top edge."""
    finite = [x for xs in values.values() for x in xs if np.isfinite(x)]
    top = max(finite, default=1.0)
    edge = top + (2.0 * abs(top) if _wide(finite) else 0.3 * abs(top) + 1e-9)
    for i, xs in enumerate(values.values()):
        shown = [x if np.isfinite(x) else edge for x in xs]
        axis.plot([i] * len(xs), shown, "o", color=f"C{i}", alpha=0.8)
        for x, y in zip(xs, shown, strict=True):
            if not np.isfinite(x):
                axis.annotate("diverged", (i, y), ha="center", fontsize=7)
    if _wide(finite):
        axis.set_yscale("log")
    axis.set_xticks(range(len(values)), values, rotation=35, ha="right")
    axis.margins(x=0.3)


def _curves(axis, values: Mapping[str, Sequence[Sequence[float]]], along: str) -> None:
    """A line per meta-seed, a colour per variant; gaps where not finite."""
    finite = [
        x for seeds in values.values() for c in seeds for x in c if np.isfinite(x)
    ]
    for i, (variant, seeds) in enumerate(values.items()):
        for j, curve in enumerate(seeds):
            at = np.linspace(0.0, 1.0, len(curve))
            shown = np.where(np.isfinite(curve), curve, np.nan)
            label = variant if j == 0 else None
            axis.plot(at, shown, color=f"C{i}", alpha=0.8, lw=1, label=label)
    if _wide(finite):
        axis.set_yscale("log")
    axis.set_xlabel(along, fontsize=8)
    axis.legend(fontsize=7)
