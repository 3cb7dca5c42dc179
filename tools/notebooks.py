"""Notebooks kept as Python files in the percent format (`jupytext --to ipynb FILE`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?.*$", re.M)


def pages(folder: Path) -> Iterator[tuple[str, str]]:
    """(path, Markdown) of every notebook, and of a page that lists them."""
    rows = []
    for file in sorted(folder.glob("*.py")):
        text = markdown(file.read_text(encoding="utf-8"))
        title = re.search(r"^# (.*)$", text, re.M)
        rows.append(f"- [{title[1] if title else file.stem}]({file.stem}.md)")
        how = (
            f"\n\n*This page is the notebook `docs/notebooks/{file.name}`: open it "
            "with Jupyter and jupytext, or run it as a program.*"
        )
        yield f"notebooks/{file.stem}.md", text + how
    yield "notebooks/index.md", "# Notebooks\n\n" + "\n".join(rows) + "\n"


def markdown(source: str) -> str:
    """A percent file as Markdown: text as it is, code in blocks."""
    cells = list(_CELL.finditer(source))
    ends = [c.start() for c in cells[1:]] + [len(source)]
    parts = []
    for cell, end in zip(cells, ends, strict=True):
        body = source[cell.end() : end].strip("\n")
        if cell["kind"]:
            parts.append(re.sub(r"^# ?", "", body, flags=re.M))
        elif body:
            parts.append(f"```python\n{body}\n```")
    return "\n\n".join(parts)
