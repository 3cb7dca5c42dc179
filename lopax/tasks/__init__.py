"""What is trained: single tasks, task families, augmentation."""

from __future__ import annotations

from lopax._core.task import SingleTask, Task, TaskFamily, check_task
from lopax.tasks.augment import Reparametrised, ReparametrisedTask
from lopax.tasks.conv import ConvNet
from lopax.tasks.family import (
    FOUR_DATASETS,
    NETWORKS,
    SupervisedFamily,
    supervised_family,
)
from lopax.tasks.functions import FunctionTask, from_functions
from lopax.tasks.heads import Classification, Head, Reconstruction
from lopax.tasks.meta_loss import LogLoss, LogLossTask
from lopax.tasks.networks import MLP, Network
from lopax.tasks.quadratic import Quadratic
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
    "ExampleBank",
    "FunctionTask",
    "Head",
    "LogLoss",
    "LogLossTask",
    "Network",
    "Quadratic",
    "Reconstruction",
    "RecurrentLM",
    "Reparametrised",
    "ReparametrisedTask",
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
    "from_functions",
    "list_tasks",
    "supervised_family",
    "task",
    "task_available",
    "task_settings",
    "text_bank",
]
