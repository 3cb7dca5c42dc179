"""References: the texts that stand for optimizers and problems."""

from __future__ import annotations

from lopax.evaluate.refs.optimizers import optimizer_spec, optimizer_specs
from lopax.evaluate.refs.problems import (
    problem_of,
    suite_problems,
    task_problem,
    user_problem,
)

__all__ = [
    "optimizer_spec",
    "optimizer_specs",
    "problem_of",
    "suite_problems",
    "task_problem",
    "user_problem",
]
