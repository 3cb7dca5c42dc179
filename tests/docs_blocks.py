"""The code blocks of a Markdown page, as a reader would run them.

Blocks run in order, in one namespace. What a page takes for granted (a model, a batch)
stands in the page itself, in a comment that is not rendered:

    <!-- hidden
    ```python
    model = torch.nn.Linear(4, 2)
    ```
    -->

`<!-- not run: REASON -->` before a block leaves it out. A block that begins with a
comment that is a file's name (`# my_problem.py`) is also written to that file.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(
    r"(?P<comment><!-- not run: (?P<reason>[^>]*?) -->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$",
    re.S | re.M,
)


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the page, for tracebacks
    not_run: str | None  # the reason

    @property
    def filename(self) -> str | None:
        found = re.match(r"# (\w+\.py)\n", self.code)
        return found[1] if found else None


def pages() -> list[Path]:
    """Every page that is written by hand."""
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, hidden ones included, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=found["language"],
            code=textwrap.dedent(found["code"]),
            line=text.count("\n", 0, found.start("code")),
            not_run=found["reason"],
        )
        for found in _FENCE.finditer(text)
    ]


def run(page: Path, block: Block, space: dict) -> None:
    """Runs a Python block in `space`; tracebacks name the page and its line."""
    if block.filename is not None:
        Path(block.filename).write_text(block.code, encoding="utf-8")
    code = "\n" * block.line + block.code
    exec(compile(code, str(page.relative_to(ROOT)), "exec", dont_inherit=True), space)
