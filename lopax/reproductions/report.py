"""The written outcome of a reproduction: a table, a plot, pass or fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lopax._core.atomic import atomic_write
from lopax._core.errors import MissingExtra
from lopax.reproductions.study import Check, Reproduction, Results

COLUMNS = ("test", "variant", "mean loss", "last loss", "worst seed", "accuracy")


def rows(results: Results) -> list[tuple[str, ...]]:
    """Trial, variant and its scores as text; means over meta-seeds."""
    found = []
    for test, variants in results.scores.items():
        for variant in variants:
            values = [
                results.over_seeds(test, variant, field)
                for field in ("mean", "last", "worst", "accuracy")
            ]
            found.append((test, variant, *(f"{v:.3g}" for v in values)))
    return found


def write(
    study: Reproduction,
    results: Results,
    checks: Sequence[Check],
    folder: Path,
    command: str,
) -> Path:
    """Writes report.md and report.png; returns the first."""
    _plot(study, results, folder / "report.png")
    passed = all(c.passed for c in checks)
    lines = [
        f"# {study.name}: {'pass' if passed else 'fail'}",
        "",
        study.claim,
        "",
        f"Source: {study.source}. Rule: {study.rule}",
        "",
        f"`{command}`",
        "",
        "![meta-loss and last losses](report.png)",
        "",
        "| check | found | |",
        "|---|---|---|",
        *(
            f"| {c.claim} | {c.found} | {'pass' if c.passed else 'FAIL'} |"
            for c in checks
        ),
        "",
        "| variant | meta-loss at the end, per meta-seed |",
        "|---|---|",
        *(
            f"| {name} | {', '.join(f'{v:.3g}' for v in values)} |"
            for name, values in results.meta_loss.items()
        ),
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(row)} |" for row in rows(results)),
        "",
        "Losses are training losses; means over meta-seeds and inner seeds, except "
        '"worst seed", the largest over both.',
    ]
    path = folder / "report.md"
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _plot(study: Reproduction, results: Results, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "lopax reproduce") from None
    panels = 1 + len(results.scores)
    figure = Figure(figsize=(2.6 * panels + 1.2, 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    values = {v: list(x) for v, x in results.meta_loss.items()}
    _dots(axes[0], "meta-loss", values)
    for axis, (test, variants) in zip(axes[1:], results.scores.items(), strict=True):
        _dots(axis, test, {v: [s.last for s in x] for v, x in variants.items()})
    figure.suptitle(f"{study.name} (a dot per meta-seed)", fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _dots(axis, title: str, values: dict[str, list[float]]) -> None:
    """A column of dots per variant; losses that are not finite sit at the top edge."""
    finite = [x for xs in values.values() for x in xs if np.isfinite(x)]
    top = max(finite, default=1.0)
    for i, (_, xs) in enumerate(values.items()):
        shown = [x if np.isfinite(x) else 3.0 * top for x in xs]
        marks = np.isfinite(xs)
        axis.plot([i] * len(xs), shown, "o", color=f"C{i}", alpha=0.8)
        for x, ok in zip(shown, marks, strict=True):
            if not ok:
                axis.annotate("diverged", (i, x), ha="center", fontsize=7)
    positive = all(x > 0 for x in finite)
    if finite and positive and top / min(finite) > 20:
        axis.set_yscale("log")
    axis.set_xticks(range(len(values)), values, rotation=35, ha="right", fontsize=8)
    axis.margins(x=0.3)
    axis.set_title(title, fontsize=9)
