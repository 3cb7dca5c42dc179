"""Claims of papers, re-run at small scale: `lopax reproduce NAME`.

Not faithful copies of the papers' experiments (those took up to thousands of device
hours) but small ones that can fail, with a rule fixed beforehand.
"""

from __future__ import annotations

from lopax._core.registry import Registry
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.flatness import FLATNESS
from lopax.reproductions.hierarchy import HIERARCHY
from lopax.reproductions.hub import HUB
from lopax.reproductions.l3rs import L3RS
from lopax.reproductions.mechanisms import MECHANISMS
from lopax.reproductions.optim4rl import OPTIM4RL
from lopax.reproductions.outcome import Check, Outcome, Panel, Reproduction, Table
from lopax.reproductions.report import write
from lopax.reproductions.self_training import SELF_TRAINING
from lopax.reproductions.star import STAR
from lopax.reproductions.study import RecipeStudy, Results, Score, Trial
from lopax.reproductions.validation import VALIDATION
from lopax.reproductions.velo_small import VELO_SMALL

REPRODUCTIONS: Registry[Reproduction] = Registry("reproduction")
"""Every reproduction by name."""

for _study in (
    VELO_SMALL,
    STAR,
    HIERARCHY,
    L3RS,
    HUB,
    OPTIM4RL,
    MECHANISMS,
    VALIDATION,
    FLATNESS,
    SELF_TRAINING,
):
    REPRODUCTIONS.add(_study.name, _study)


def list_reproductions(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern."""
    return REPRODUCTIONS.names(pattern)


__all__ = [
    "REPRODUCTIONS",
    "Case",
    "CaseResults",
    "CaseStudy",
    "Check",
    "Measured",
    "Outcome",
    "Panel",
    "RecipeStudy",
    "Reproduction",
    "Results",
    "Score",
    "Table",
    "Trial",
    "list_reproductions",
    "write",
]
