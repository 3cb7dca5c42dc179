"""Judging optimizers: runs, baselines, a result store, statistics and a report.

Plotting and templating libraries are imported only when a figure or a report is made.
"""

from __future__ import annotations

from typing import Any

from lopax.evaluate.baselines import (
    BASELINES,
    CONTEMPORARY,
    PUBLISHED,
    TUNING_FREE,
    baseline,
    configured,
    default_rate,
)
from lopax.evaluate.compare import bench, compare
from lopax.evaluate.hybrids import hub
from lopax.evaluate.judge import Comparison
from lopax.evaluate.problem import Problem, RunConfig
from lopax.evaluate.refs import (
    optimizer_spec,
    optimizer_specs,
    suite_problems,
    task_problem,
    user_problem,
)
from lopax.evaluate.report.family_tree import Lineage, read_lineage, write_family_tree
from lopax.evaluate.report.pages import render_html, render_markdown, write_report
from lopax.evaluate.results.collect import collect, run_study
from lopax.evaluate.results.failures import FailureMap, failure_map
from lopax.evaluate.results.league import Setting, Standing, league
from lopax.evaluate.results.shipped import Installed, archive_of, install, pack
from lopax.evaluate.results.study import MissingRun, RunGroup, Study
from lopax.evaluate.results.summary import Summary, summarise
from lopax.evaluate.results.torch_results import read_torch_comparison
from lopax.evaluate.runs.cost import Cost, measure
from lopax.evaluate.runs.grid import pending, run_grid
from lopax.evaluate.runs.jobs import Event, Job, Outcome
from lopax.evaluate.runs.run import RunResult, run
from lopax.evaluate.runs.store import Merge, Record, Store
from lopax.evaluate.runs.timing import add_costs, mean_ratio, suite_costs
from lopax.evaluate.specs import (
    LEARNING_RATES,
    OptimizerSpec,
    from_transformation,
    learned,
)
from lopax.statistics.aggregate import (
    Interval,
    bootstrap,
    bootstrap_pair,
    iqm,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)
from lopax.statistics.profiles import Profile, performance_profile, time_profile
from lopax.statistics.scores import (
    final_loss,
    final_loss_score,
    smooth,
    speedup,
    steps_to_target,
)
from lopax.statistics.significance import PairedTest, paired_test
from lopax.statistics.tuning import Tuned, tune

__all__ = [
    "BASELINES",
    "CONTEMPORARY",
    "LEARNING_RATES",
    "PUBLISHED",
    "TUNING_FREE",
    "Comparison",
    "Cost",
    "Event",
    "FailureMap",
    "Installed",
    "Interval",
    "Job",
    "Lineage",
    "Merge",
    "MissingRun",
    "OptimizerSpec",
    "Outcome",
    "PairedTest",
    "Problem",
    "Profile",
    "Record",
    "RunConfig",
    "RunGroup",
    "RunResult",
    "Setting",
    "Standing",
    "Store",
    "Study",
    "Summary",
    "Tuned",
    "add_costs",
    "archive_of",
    "baseline",
    "bench",
    "bootstrap",
    "bootstrap_pair",
    "collect",
    "compare",
    "configured",
    "default_rate",
    "failure_map",
    "final_loss",
    "final_loss_score",
    "from_transformation",
    "hub",
    "install",
    "iqm",
    "league",
    "learned",
    "mean",
    "mean_ratio",
    "measure",
    "median",
    "optimality_gap",
    "optimizer_spec",
    "optimizer_specs",
    "pack",
    "paired_test",
    "pending",
    "performance_profile",
    "probability_of_improvement",
    "read_lineage",
    "read_torch_comparison",
    "render_html",
    "render_markdown",
    "run",
    "run_grid",
    "run_study",
    "smooth",
    "speedup",
    "steps_to_target",
    "suite_costs",
    "suite_problems",
    "summarise",
    "task_problem",
    "time_profile",
    "tune",
    "user_problem",
    "write_family_tree",
    "write_report",
]


_RENAMED = {"Cell": RunGroup, "Hole": MissingRun}


def __getattr__(name: str) -> Any:
    """What had other names once."""
    if name in _RENAMED:
        return _RENAMED[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
