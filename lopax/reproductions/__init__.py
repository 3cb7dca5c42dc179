"""Claims of papers, re-run at small scale: `lopax reproduce NAME`.

Not faithful copies of the papers' experiments (those took up to thousands of device
hours) but small ones that can fail, with a rule fixed beforehand.
"""

from __future__ import annotations

from lopax._core.errors import ConfigError
from lopax._core.registry import Registry
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.flatness import FLATNESS, FLATNESS_AT_SIZE
from lopax.reproductions.flatness_stronger import FLATNESS_STRONGER
from lopax.reproductions.hierarchy import HIERARCHY, HIERARCHY_AT_SIZE
from lopax.reproductions.hub import HUB, HUB_AT_SIZE
from lopax.reproductions.l3rs import L3RS, L3RS_AT_SIZE
from lopax.reproductions.mechanisms import MECHANISMS, MECHANISMS_AT_SIZE
from lopax.reproductions.optim4rl import OPTIM4RL
from lopax.reproductions.optim4rl_grids import OPTIM4RL_AT_SIZE
from lopax.reproductions.outcome import (
    SIZES,
    Check,
    Outcome,
    Panel,
    Reproduction,
    Table,
)
from lopax.reproductions.report import write
from lopax.reproductions.self_training import SELF_TRAINING
from lopax.reproductions.self_training_map import (
    SELF_TRAINING_AT_SIZE,
    SELF_TRAINING_EDGE,
)
from lopax.reproductions.star import STAR, STAR_AT_SIZE
from lopax.reproductions.study import RecipeStudy, Results, Score, Trial
from lopax.reproductions.validation import VALIDATION, VALIDATION_AT_SIZE
from lopax.reproductions.velo_small import VELO_AT_SIZE, VELO_SMALL

REPRODUCTIONS: Registry[Reproduction] = Registry("reproduction")
"""Every reproduction by name, at the smallest size its claim can be tried at."""

AT_SIZE: Registry[Reproduction] = Registry("reproduction of the paper's size")
"""Those that also run at the paper's own setting, as far as two CPU cores carry it."""

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
    FLATNESS_STRONGER,
    SELF_TRAINING,
    SELF_TRAINING_EDGE,
):
    REPRODUCTIONS.add(_study.name, _study)

for _study in (
    MECHANISMS_AT_SIZE,
    VELO_AT_SIZE,
    L3RS_AT_SIZE,
    FLATNESS_AT_SIZE,
    SELF_TRAINING_AT_SIZE,
    HIERARCHY_AT_SIZE,
    STAR_AT_SIZE,
    HUB_AT_SIZE,
    VALIDATION_AT_SIZE,
    OPTIM4RL_AT_SIZE,
):
    AT_SIZE.add(_study.name, _study)


def reproduction(name: str, size: str = "small") -> Reproduction:
    """The reproduction called `name`, of size "small" or "paper".

    Raises `UnknownName` for a name that is not there (at this size), `ConfigError` for
    another size.
    """
    if size not in SIZES:
        raise ConfigError(f"size = {size!r}: must be one of {', '.join(SIZES)}")
    return (REPRODUCTIONS if size == "small" else AT_SIZE)[name]


def list_reproductions(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern."""
    return REPRODUCTIONS.names(pattern)


__all__ = [
    "AT_SIZE",
    "REPRODUCTIONS",
    "SIZES",
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
    "reproduction",
    "write",
]
