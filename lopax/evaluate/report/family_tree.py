"""The family tree of a population that was trained together (`lopax.meta.population`).

Read from the lineage a run keeps in lineage.jsonl: who became a copy of whom in which
generation, whose theta became whose outer rule, and how all were judged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lopax._core.atomic import atomic_write
from lopax._core.errors import FileFormatError
from lopax._core.jsonl import read_lines
from lopax.evaluate.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINEAGE = "lineage.jsonl"
_FIELDS = {"step", "member", "score", "parent", "phi_parent", "multiplier"}


class Lineage(NamedTuple):
    """G generations of P members; the first is the founders."""

    steps: NDArray[np.int64]  # [G] outer steps
    scores: NDArray[np.float64]  # [G, P] before copying; +inf: lost
    parents: NDArray[np.int64]  # [G, P]
    donors: NDArray[np.int64]  # [G, P] whose theta became the outer rule; -1: nobody's
    multipliers: NDArray[np.float64]  # [G, P] after copying

    def founders(self) -> NDArray[np.int64]:
        """[G, P] which founder's line each member is of, after each generation."""
        lines = [self.parents[0]]
        for parents in self.parents[1:]:
            lines.append(lines[-1][parents])
        return np.stack(lines)

    def best_line(self) -> NDArray[np.int64]:
        """[G] the slot of the last best member's ancestor when each generation was
        judged; the last entry is the best member itself."""
        slot = int(np.argmin(self.scores[-1]))
        slots = [slot]
        for parents in self.parents[-2::-1]:
            slot = int(parents[slot])
            slots.append(slot)
        return np.asarray(slots[::-1])

    def best_scores(self) -> NDArray[np.float64]:
        """[G] of the best member of each generation."""
        return self.scores.min(axis=1)


def read_lineage(folder: str | os.PathLike[str]) -> Lineage:
    """The lineage of the run in `folder`, as far as its generations are complete.

    Raises `FileFormatError` if it keeps none or the file is damaged.
    """
    path = Path(folder) / LINEAGE
    if not path.exists():
        raise FileFormatError(f"{folder} keeps no lineage: it is no population's run")
    return from_lines(read_lines(path), str(path))


def from_lines(lines: Sequence[Mapping[str, Any]], where: str) -> Lineage:
    """A lineage from its lines. Raises `FileFormatError`."""
    rows: list[list[Mapping[str, Any]]] = []
    for line in lines:
        if not line.keys() >= _FIELDS:
            raise FileFormatError(
                f"{where}: a line lacks {', '.join(sorted(_FIELDS - line.keys()))}"
            )
        if line["member"] == 0:
            rows.append([])
        if not rows or line["member"] != len(rows[-1]):
            raise FileFormatError(
                f"{where}: members are missing at step {line['step']}"
            )
        rows[-1].append(line)
    if rows and len(rows[-1]) < len(rows[0]):
        rows.pop()
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise FileFormatError(f"{where}: holds no complete generation")

    def table(name: str, missing: float, kind: Any) -> NDArray[Any]:
        found = [[missing if x[name] is None else x[name] for x in r] for r in rows]
        return np.asarray(found, kind)

    try:
        scores = table("score", np.inf, np.float64)
        parents, donors = (
            table(name, -1, np.int64) for name in ("parent", "phi_parent")
        )
        multipliers = table("multiplier", np.nan, np.float64)
        steps = np.asarray([row[0]["step"] for row in rows], np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            f"{where}: not a number where one is due ({error})"
        ) from None
    if max(parents.max(), donors.max()) >= len(rows[0]):
        raise FileFormatError(f"{where}: a parent that is no member")
    for g in range(1, len(rows)):
        if rows[g][0].get("phase") != rows[g - 1][0].get("phase"):
            # A phase starts with copies of the best that the one before ended with.
            parents[g - 1] = np.argmin(scores[g - 1])
    return Lineage(
        steps=steps,
        scores=scores,
        parents=parents,
        donors=donors,
        multipliers=multipliers,
    )


def family_tree(lineage: Lineage) -> Figure:
    """Above, a row per member: lines bend where one is replaced by a copy of another;
    lines of the same founder have one colour, the last best member's ancestry is
    thick. A dot is a new outer rule, in the colour of the line its theta comes from; a
    cross a member that was lost. Below, all scores."""
    size = lineage.scores.shape[1]
    figure, whole = style.panel(width=7.2, height=2.2 + 0.2 * size)
    whole.remove()
    above, below = figure.subplots(
        2, 1, sharex=True, height_ratios=[0.2 * size + 0.3, 1.6]
    )
    colours = _colours(lineage)
    _draw_tree(style.style(above), lineage, colours)
    _draw_scores(style.style(below), lineage, colours)
    return figure


def write_family_tree(folder: str | os.PathLike[str]) -> Path:
    """Draws the family tree of the run in `folder` as family_tree.png there.

    Raises `FileFormatError`, or `MissingExtra` without matplotlib.
    """
    figure = family_tree(read_lineage(folder))
    path = Path(folder) / "family_tree.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return path


def _colours(lineage: Lineage) -> list[str]:
    """Of each founder's line: those that lasted longest stand out."""
    lines = lineage.founders()
    size = lines.shape[1]
    lasted = [max(np.flatnonzero((lines == f).any(axis=1))) for f in range(size)]
    final = [int(np.sum(lines[-1] == f)) for f in range(size)]
    ranked = sorted(range(size), key=lambda f: (-lasted[f], -final[f], f))
    chosen = dict(zip(ranked, style.PALETTE, strict=False))
    return [chosen.get(f, style.FADED) for f in range(size)]


def _draw_tree(axes: Axes, lineage: Lineage, colours: Sequence[str]) -> None:
    lines, ancestry, steps = lineage.founders(), lineage.best_line(), lineage.steps

    def line(x: Sequence[float], y: Sequence[int], founder: int, thick: bool) -> None:
        axes.plot(
            x,
            y,
            color=colours[founder],
            linewidth=2.6 if thick else 1.0,
            zorder=3 if thick else 2,
            solid_capstyle="round",
        )

    for g in range(1, len(steps)):
        start, end = steps[g - 1], steps[g]
        bend = end - 0.45 * (end - start)
        next_best = ancestry[min(g + 1, len(steps) - 1)]
        for i, parent in enumerate(lineage.parents[g]):
            before, after = int(lines[g - 1, i]), int(lines[g, i])
            line([start, bend], [i, i], before, bool(ancestry[g] == i))
            line([bend, end], [parent, i], after, bool(next_best == i))
            if not np.isfinite(lineage.scores[g, i]):
                axes.plot(bend, i, "x", color=style.INK, markersize=4, zorder=4)
            if lineage.donors[g, i] >= 0:
                donor = colours[lines[g - 1, lineage.donors[g, i]]]
                axes.plot(end, i, "o", color=donor, markersize=3.5, zorder=4)
    axes.set_ylim(lines.shape[1] - 0.5, -0.5)
    axes.set_yticks(range(lines.shape[1]))
    axes.set_ylabel("member")


def _draw_scores(axes: Axes, lineage: Lineage, colours: Sequence[str]) -> None:
    lines = lineage.founders()
    for g in range(len(lineage.steps)):
        before = lines[max(g - 1, 0)]
        axes.scatter(
            np.full(before.shape, lineage.steps[g]),
            np.where(np.isfinite(lineage.scores[g]), lineage.scores[g], np.nan),
            s=7,
            color=[colours[f] for f in before],
            alpha=0.7,
            linewidths=0,
        )
    best = np.where(np.isfinite(lineage.best_scores()), lineage.best_scores(), np.nan)
    axes.plot(lineage.steps, best, color=style.INK, linewidth=1.2, label="best")
    axes.set_xlabel("outer step")
    axes.set_ylabel("score")
    axes.legend(frameon=False, fontsize=8, labelcolor=style.INK)
