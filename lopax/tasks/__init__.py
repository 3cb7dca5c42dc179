"""What is trained: single tasks, task families, augmentation."""

from __future__ import annotations

from lopax._core.task import SingleTask, Task, TaskFamily, check_task
from lopax.tasks.augment import Reparametrised, ReparametrisedTask
from lopax.tasks.conv import ConvNet
from lopax.tasks.degraded import Degradations, Degraded, DegradedTask
from lopax.tasks.family import (
    FOUR_DATASETS,
    NETWORKS,
    SupervisedFamily,
    supervised_family,
)
from lopax.tasks.finetuning import FineTuning, FineTuningSettings, fine_tuning
from lopax.tasks.functions import FunctionTask, from_functions
from lopax.tasks.heads import Classification, Head, Reconstruction
from lopax.tasks.meta_loss import LogLoss, LogLossTask
from lopax.tasks.networks import MLP, Network
from lopax.tasks.pretraining import Pretrained, PretrainingSettings, pretrained
from lopax.tasks.quadratic import Quadratic
from lopax.tasks.rotated_quadratics import RotatedQuadratic, RotatedQuadratics
from lopax.tasks.sampled import SampledTask
from lopax.tasks.sources import ExampleBank, Source, TextBank, bank_of, text_bank
from lopax.tasks.supervised import SupervisedTask
from lopax.tasks.table import (
    TASKS,
    TaskEntry,
    list_tasks,
    task,
    task_available,
    task_settings,
)
from lopax.tasks.text_networks import RecurrentLM, TransformerLM

__all__ = [
    "FOUR_DATASETS",
    "MLP",
    "NETWORKS",
    "TASKS",
    "Classification",
    "ConvNet",
    "Degradations",
    "Degraded",
    "DegradedTask",
    "ExampleBank",
    "FineTuning",
    "FineTuningSettings",
    "FunctionTask",
    "Head",
    "LogLoss",
    "LogLossTask",
    "Network",
    "Pretrained",
    "PretrainingSettings",
    "Quadratic",
    "Reconstruction",
    "RecurrentLM",
    "Reparametrised",
    "ReparametrisedTask",
    "RotatedQuadratic",
    "RotatedQuadratics",
    "SampledTask",
    "SingleTask",
    "Source",
    "SupervisedFamily",
    "SupervisedTask",
    "Task",
    "TaskEntry",
    "TaskFamily",
    "TextBank",
    "TransformerLM",
    "bank_of",
    "check_task",
    "fine_tuning",
    "from_functions",
    "list_tasks",
    "pretrained",
    "supervised_family",
    "task",
    "task_available",
    "task_settings",
    "text_bank",
]
