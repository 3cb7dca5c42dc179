"""What a small-scale re-run of a paper's claim is, and what comes out of it."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lopax._core.config import check_choice
from lopax._core.errors import ConfigError
from lopax._core.single_writer import single_writer

SIZES = ("small", "paper")
"""As small as the claim can be tried, in minutes; or the paper's own setting, as far as
two CPU cores carry it."""


class Check(NamedTuple):
    """One statement of the pass rule."""

    claim: str
    passed: bool
    found: str  # the numbers


class Table(NamedTuple):
    """Rows of text under a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Panel(NamedTuple):
    """One panel of the plot: a dot or a curve per variant and meta-seed."""

    title: str
    dots: Mapping[str, Sequence[float]] = {}
    curves: Mapping[str, Sequence[Sequence[float]]] = {}
    along: str = "share of the run"
    """What curves run along."""
    marks: Sequence[float] = ()
    """Levels that the rule names: dashed lines."""


class Outcome(NamedTuple):
    """What a reproduction found."""

    checks: Sequence[Check]
    tables: Sequence[Table]
    panels: Sequence[Panel]

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction(abc.ABC):
    """A claim of a paper, a small experiment that can fail, and a rule fixed before.

    Everything is repeated over meta-seeds; what has been done is kept in a folder, and
    nothing runs twice.
    """

    name: str
    claim: str
    source: str
    rule: str
    """When it counts as reproduced, in words."""
    minutes: float
    """On two idle cores, all meta-seeds."""
    size: str = "small"
    """One of `SIZES`."""
    meta_seeds: int = 3
    """How many its rule asks for."""

    def __post_init__(self) -> None:
        check_choice(self, "size", SIZES)

    def carry_out(
        self,
        folder: Path,
        *,
        meta_seeds: Sequence[int] = (0, 1, 2),
        share: float = 1.0,
        say: Callable[[str], None] = print,
    ) -> Outcome:
        """Runs everything, or reads what `folder` has of it.

        **Arguments:**

        - `share`: of the meta-training; below one the rule is not expected to pass.
        - `say`: told a line at a time what is being done.

        Raises `ConfigError` unless 0 < `share` <= 1, and `FolderInUse` if another
        process works in `folder`.
        """
        check_share(share)
        with single_writer(folder):
            return self.found(folder, meta_seeds, share, say)

    @abc.abstractmethod
    def found(
        self,
        folder: Path,
        meta_seeds: Sequence[int],
        share: float,
        say: Callable[[str], None],
    ) -> Outcome:
        """`carry_out`, in a folder that is this process's own."""


def check_share(share: float) -> None:
    """Raises `ConfigError` unless 0 < share <= 1."""
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"share = {share!r}: must be a number > 0 and <= 1")


def standard_error(gains: np.ndarray) -> float:
    """Of the mean of paired differences [N]; NaN for fewer than two."""
    if len(gains) < 2:
        return math.nan
    return float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
