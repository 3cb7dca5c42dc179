"""Claims of papers, re-run at small scale: `lopax reproduce NAME`.

Not faithful copies of the papers' experiments (those took up to thousands of device
hours) but small ones that can fail, with a rule fixed beforehand.
"""

from __future__ import annotations

from lopax._core.registry import Registry
from lopax.reproductions.hierarchy import HIERARCHY
from lopax.reproductions.report import COLUMNS, rows, write
from lopax.reproductions.star import STAR
from lopax.reproductions.study import (
    Check,
    Reproduction,
    Results,
    Score,
    Trial,
    carry_out,
    shortened,
)
from lopax.reproductions.velo_small import VELO_SMALL

REPRODUCTIONS: Registry[Reproduction] = Registry("reproduction")
for _study in (VELO_SMALL, STAR, HIERARCHY):
    REPRODUCTIONS.add(_study.name, _study)


def list_reproductions(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern."""
    return REPRODUCTIONS.names(pattern)


__all__ = [
    "COLUMNS",
    "REPRODUCTIONS",
    "Check",
    "Reproduction",
    "Results",
    "Score",
    "Trial",
    "carry_out",
    "list_reproductions",
    "rows",
    "shortened",
    "write",
]
