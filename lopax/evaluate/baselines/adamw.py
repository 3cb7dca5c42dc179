"""AdamW with a schedule and an average of the parameters; and schedule-free AdamW."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax
from optax import contrib

from lopax._core.config import check_choice, check_range
from lopax.evaluate.baselines.averages import AVERAGES, averaged
from lopax.evaluate.baselines.schedules import check_schedule, schedule_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Settings of AdamW; without `average`, the last parameters are the result."""

    schedule: str = "linear"
    """One of `schedules.SCHEDULES`."""
    warmup: float = 0.02
    """Share of the run."""
    cooldown: float = 0.2
    """Share of the run, for the schedule "wsd"."""
    average: str | None = None
    """One of `averages.AVERAGES`, or None."""
    window: float = 0.1
    """Share of the run that the average looks back on."""
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_schedule(self)
        if self.average is not None:
            check_choice(self, "average", AVERAGES)
        check_range(self, "window", above=0.0, high=1.0)
        for name in ("b1", "b2"):
            check_range(self, name, low=0.0, below=1.0)
        check_range(self, "weight_decay", low=0.0)

    def make(self, num_steps: int, learning_rate: Any) -> optax.GradientTransformation:
        """The transformation for a run of `num_steps` updates."""
        rate = schedule_of(
            num_steps, learning_rate, self.schedule, self.warmup, self.cooldown
        )
        adamw = optax.adamw(
            rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay
        )
        if self.average is None:
            return adamw
        return averaged(adamw, self.average, num_steps, self.window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW:
    """Settings of schedule-free AdamW; the defaults won AlgoPerf's self-tuning ruleset
    (Defazio et al., 2024, arXiv 2405.15682)."""

    warmup: float = 0.02
    b1: float = 0.9
    b2: float = 0.9955159689799007
    weight_decay: float = 0.08121616522670176

    def __post_init__(self) -> None:
        check_range(self, "warmup", low=0.0, below=1.0)
        check_range(self, "b1", above=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "weight_decay", low=0.0)

    def make(self, num_steps: int, learning_rate: Any) -> optax.GradientTransformation:
        """The transformation for a run of `num_steps` updates."""
        return contrib.schedule_free_adamw(
            learning_rate,
            warmup_steps=max(1, round(self.warmup * num_steps)),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
        )
