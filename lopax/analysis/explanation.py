"""What an explanation consists of: words, tables and figures, in sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task, TaskFamily
from lopax._core.types import Theta

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """A figure and what it shows."""

    title: str
    figure: Figure
    caption: str


class Grid(NamedTuple):
    """A table of text; columns named in `words` are sentences."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


class Section(NamedTuple):
    """One question and its answer."""

    title: str
    text: Sequence[str]  # paragraphs
    drawings: Sequence[Drawing] = ()
    grid: Grid | None = None
    headline: str = ""  # for the top of the page


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is explained, and on what it is run."""

    optimizer: LearnedOptimizer
    theta: Theta
    task: Task
    task_name: str
    family: TaskFamily
    """For recurrent rules, whose states are collected over many problems."""
    num_steps: int
    seeds: tuple[int, ...]


Say = Callable[[str], None]


class Explanation(NamedTuple):
    """A finished page, before it is written."""

    title: str
    facts: dict[str, str]
    headlines: Sequence[str]
    sections: Sequence[Section]
    left_out: Sequence[str]  # analyses that do not apply, and why


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
