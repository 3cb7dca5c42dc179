"""Meta-training: outer state, outer step, phases, loop, checkpoints."""

from lopax.meta.checkpoint import load_state, save_state
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.estimator_config import EstimatorConfig
from lopax.meta.families import build_families, build_family
from lopax.meta.loop import Outcome, Progress, train
from lopax.meta.outer_config import OuterConfig
from lopax.meta.population import PopulationState, PopulationTrainer
from lopax.meta.population_config import PopulationConfig
from lopax.meta.recipes import load_recipe
from lopax.meta.run_folder import holds_run, read_config, read_log
from lopax.meta.search import SearchState, SearchTrainer
from lopax.meta.search_config import SearchConfig
from lopax.meta.selection import SELECTIONS
from lopax.meta.task_config import AgentsConfig, TasksConfig
from lopax.meta.trainer import MetaState, PhaseTrainer, StepInfo, build_estimator
from lopax.meta.variety import VarietyConfig, draw_groups

__all__ = [
    "SELECTIONS",
    "AgentsConfig",
    "EstimatorConfig",
    "MetaState",
    "Outcome",
    "OuterConfig",
    "PhaseConfig",
    "PhaseTrainer",
    "PopulationConfig",
    "PopulationState",
    "PopulationTrainer",
    "Progress",
    "RunConfig",
    "SearchConfig",
    "SearchState",
    "SearchTrainer",
    "StepInfo",
    "TasksConfig",
    "VarietyConfig",
    "build_estimator",
    "build_families",
    "build_family",
    "draw_groups",
    "holds_run",
    "load_recipe",
    "load_state",
    "read_config",
    "read_log",
    "save_state",
    "train",
]
