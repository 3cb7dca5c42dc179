"""Draws the parts of lopax and what they import: `python tools/draw_house.py`.

Writes docs/pictures/house.svg. An arrow means "imports"; those that follow from others
are left out. A part stands above everything it imports.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "house.svg"
BOX, GAP, FLOOR, MARGIN = 112, 20, 74, 16

Graph = dict[str, set[str]]


def imports() -> Graph:
    """part -> the parts it imports, at any depth of nesting, type checking aside."""
    package = ROOT / "lopax"
    graph: Graph = {}
    for file in sorted(package.rglob("*.py")):
        part = file.relative_to(package).parts[0].removesuffix(".py")
        if part.startswith("__") or part == "_version":
            continue
        found = graph.setdefault(part, set())
        for node in _runtime_nodes(ast.parse(file.read_text(encoding="utf-8"))):
            found |= _parts(node)
    return {k: {v for v in vs if v in graph and v != k} for k, vs in graph.items()}


def _runtime_nodes(tree: ast.Module) -> list[ast.AST]:
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    return [n for n in ast.walk(tree) if id(n) not in skipped]


def _parts(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "") == "lopax":
        return {a.name for a in node.names}
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module]
    elif isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    return {n.split(".")[1] for n in names if n.startswith("lopax.")}


def floors(graph: Graph) -> dict[str, int]:
    """0 for what imports nothing; else one above the highest part imported.

    Raises `RecursionError` if two parts import each other.
    """
    known: dict[str, int] = {}

    def floor(part: str) -> int:
        if part not in known:
            known[part] = 1 + max((floor(p) for p in graph[part]), default=-1)
        return known[part]

    for part in graph:
        floor(part)
    return known


def reduced(graph: Graph) -> Graph:
    """Without the arrows that follow from two others."""

    def below(part: str) -> set[str]:
        return graph[part].union(*(below(p) for p in graph[part]))

    return {
        part: {p for p in used if not any(p in below(q) for q in used - {p})}
        for part, used in graph.items()
    }


def positions(
    rows: dict[int, list[str]], arrows: Graph, width: float
) -> dict[str, tuple[float, float]]:
    """Upper left corners: over the middle of what a part uses, as far as there is
    room; what uses less far down stands further out."""
    place: dict[str, tuple[float, float]] = {}
    top = max(rows)
    for row in sorted(rows):

        def wish(part: str) -> float:
            used = [place[p][0] for p in arrows[part]]
            return sum(used) / len(used) if used else MARGIN + (width - BOX) / 2

        spots = {part: wish(part) for part in sorted(rows[row], key=wish)}
        left = -1e9
        for part, x in spots.items():
            left = spots[part] = max(x, left + BOX + GAP)
        shift = sum(spots.values()) / len(spots) - sum(map(wish, spots)) / len(spots)
        for part, x in spots.items():
            place[part] = (x - shift, MARGIN + (top - row) * FLOOR)
    least = min(x for x, _ in place.values())
    return {p: (x - least + MARGIN, y) for p, (x, y) in place.items()}


def draw(graph: Graph) -> str:
    """The picture as SVG."""
    level = floors(graph)
    arrows = reduced(graph)
    rows: dict[int, list[str]] = {}
    for part in sorted(graph):
        rows.setdefault(level[part], []).append(part)
    widest = max(map(len, rows.values()))
    top = max(rows)
    height = top * FLOOR + 34 + 2 * MARGIN
    place = positions(rows, arrows, widest * (BOX + GAP))
    width = max(x for x, _ in place.values()) + BOX + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}" font-family="sans-serif" '
        'font-size="13">',
        "<title>The parts of lopax and what they import</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#777"/></marker>'
        "</defs>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for part, used in sorted(arrows.items()):
        x, y = place[part]
        for other in sorted(used):
            to_x, to_y = place[other]
            lines.append(
                f'<path d="M{x + BOX / 2:.0f} {y + 34:.0f}'
                f"C{x + BOX / 2:.0f} {y + 56:.0f} {to_x + BOX / 2:.0f} {to_y - 22:.0f} "
                f'{to_x + BOX / 2:.0f} {to_y - 1:.0f}" fill="none" stroke="#777" '
                'marker-end="url(#tip)"/>'
            )
    for part, (x, y) in sorted(place.items()):
        lines.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="34" rx="6" '
            'fill="#e8eaf6" stroke="#3f51b5"/>'
            f'<text x="{x + BOX / 2:.0f}" y="{y + 22:.0f}" text-anchor="middle">'
            f"{part}</text>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()), encoding="utf-8")
    print(PICTURE)
