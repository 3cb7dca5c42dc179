"""Judging optimizers: runs, baselines, a result store, statistics and a report.

Plotting and templating libraries are imported only when a figure or a report is made.
"""

from __future__ import annotations

from lopax.evaluate.aggregate import (
    Interval,
    bootstrap,
    bootstrap_pair,
    iqm,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)
from lopax.evaluate.baselines import (
    BASELINES,
    CONTEMPORARY,
    PUBLISHED,
    TUNING_FREE,
    baseline,
    configured,
    default_rate,
)
from lopax.evaluate.compare import Comparison, bench, compare
from lopax.evaluate.cost import Cost, measure
from lopax.evaluate.failures import FailureMap, failure_map
from lopax.evaluate.family_tree import Lineage, read_lineage, write_family_tree
from lopax.evaluate.grid import Event, Job, Outcome, pending, run_grid, run_study
from lopax.evaluate.hybrids import hub
from lopax.evaluate.league import Setting, Standing, league
from lopax.evaluate.profiles import Profile, performance_profile, time_profile
from lopax.evaluate.refs import (
    optimizer_spec,
    optimizer_specs,
    suite_problems,
    task_problem,
    user_problem,
)
from lopax.evaluate.report import render_html, render_markdown, write_report
from lopax.evaluate.run import RunConfig, RunResult, run
from lopax.evaluate.scores import (
    final_loss,
    final_loss_score,
    smooth,
    speedup,
    steps_to_target,
)
from lopax.evaluate.shipped import Installed, archive_of, install, pack
from lopax.evaluate.significance import PairedTest, paired_test
from lopax.evaluate.specs import (
    LEARNING_RATES,
    OptimizerSpec,
    from_transformation,
    learned,
)
from lopax.evaluate.store import Merge, Record, Store
from lopax.evaluate.study import Cell, Hole, Problem, Study, collect
from lopax.evaluate.summary import Summary, summarise
from lopax.evaluate.timing import add_costs, mean_ratio, suite_costs
from lopax.evaluate.torch_results import read_torch_comparison
from lopax.evaluate.tuning import Tuned, tune

__all__ = [
    "BASELINES",
    "CONTEMPORARY",
    "LEARNING_RATES",
    "PUBLISHED",
    "TUNING_FREE",
    "Cell",
    "Comparison",
    "Cost",
    "Event",
    "FailureMap",
    "Hole",
    "Installed",
    "Interval",
    "Job",
    "Lineage",
    "Merge",
    "OptimizerSpec",
    "Outcome",
    "PairedTest",
    "Problem",
    "Profile",
    "Record",
    "RunConfig",
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
