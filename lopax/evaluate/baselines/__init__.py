"""The hand-made optimizers that anything new is measured against."""

from __future__ import annotations

from lopax.evaluate.baselines.adamw import AdamW, ScheduleFreeAdamW
from lopax.evaluate.baselines.entries import (
    BASELINES,
    FORMS,
    at_rate,
    baseline,
    configured,
    default_rate,
)
from lopax.evaluate.baselines.muon import Muon, ScheduleFreeMuon
from lopax.evaluate.baselines.schedules import SCHEDULES, schedule_of, warmup_cosine
from lopax.evaluate.baselines.soap import Soap
from lopax.evaluate.baselines.table import CONTEMPORARY, PUBLISHED, TUNING_FREE

__all__ = [
    "BASELINES",
    "CONTEMPORARY",
    "FORMS",
    "PUBLISHED",
    "SCHEDULES",
    "TUNING_FREE",
    "AdamW",
    "Muon",
    "ScheduleFreeAdamW",
    "ScheduleFreeMuon",
    "Soap",
    "at_rate",
    "baseline",
    "configured",
    "default_rate",
    "schedule_of",
    "warmup_cosine",
]
