"""Draws the first table of README's "Results": `python tools/draw_scores.py`.

Writes docs/pictures/scores.svg: for each optimizer its score and 95 % interval. The
numbers are those of the table and stand nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "scores.svg"
LABELS, WIDTH, ROW, MARGIN = 300, 340, 24, 14
LEARNED, HAND_MADE = "#3f51b5", "#777"


class Score(NamedTuple):
    name: str
    value: float
    low: float
    high: float
    bundled: bool


def scores(readme: str) -> list[Score]:
    """The rows of the table; raises `ValueError` if there is no such table."""
    section = readme.split("\n## Results\n", 1)[-1].split("\n## ", 1)[0]
    found = []
    for line in section.splitlines():
        row = re.match(
            r"\| (?P<name>[^|]+) \| \**(?P<value>[\d.]+)\** "
            r"\[(?P<low>[\d.]+), (?P<high>[\d.]+)\]",
            line,
        )
        if row is None:
            if found:
                break  # the end of the first table
            continue
        plain = re.sub(r"\([^)]*\)|[*`]", "", row["name"]).strip(" ,")
        value, low, high = (float(row[k]) for k in ("value", "low", "high"))
        name = " ".join(plain.split())
        found.append(Score(name, value, low, high, bundled="bundled" in plain))
    if not found:
        raise ValueError('README.md has no table of scores under "Results"')
    return found


def draw(rows: list[Score]) -> str:
    """The picture as SVG."""
    low = min(0.9, *(r.low for r in rows)) - 0.02
    high = max(r.high for r in rows) + 0.02

    def x(value: float) -> float:
        return LABELS + (value - low) / (high - low) * WIDTH

    height = len(rows) * ROW + 2 * MARGIN + 26
    width = LABELS + WIDTH + MARGIN
    bottom = MARGIN + len(rows) * ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        "<title>Scores of the optimizers, with 95 % intervals</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    tick = round(low + 0.05, 1)
    while tick <= high:
        dash = "" if abs(tick - 1.0) < 1e-9 else ' stroke-dasharray="2 3"'
        lines.append(
            f'<path d="M{x(tick):.1f} {MARGIN}V{bottom}" stroke="#bbb"{dash}/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" '
            f'fill="#444">{tick:.1f}</text>'
        )
        tick = round(tick + 0.1, 1)
    for i, row in enumerate(rows):
        y = MARGIN + (i + 0.5) * ROW
        colour = LEARNED if row.bundled else HAND_MADE
        weight = ' font-weight="bold"' if row.bundled else ""
        lines.append(
            f'<text x="{LABELS - 10}" y="{y + 4:.1f}" text-anchor="end"{weight}>'
            f"{row.name}</text>"
            f'<path d="M{x(row.low):.1f} {y:.1f}H{x(row.high):.1f}" '
            f'stroke="{colour}" stroke-width="7" opacity="0.4"/>'
            f'<circle cx="{x(row.value):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
        )
    lines.append(
        f'<text x="{x(1.0):.1f}" y="{bottom + 30}" text-anchor="middle" fill="#444">'
        "even with tuned Adam</text>"
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(scores((ROOT / "README.md").read_text("utf-8"))), "utf-8")
    print(PICTURE)
