"""Settings of the outer optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax.meta import learned_outer
from lopax.meta.idle import refuse_idle

OWN: Mapping[str, Mapping[str, float]] = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "sgd": {"b1": 0.9},
}
"""Hand-made optimizers, their own settings, and what these are if not given."""
HAND_MADE = tuple(OWN)
SCHEDULES = ("constant", "cosine", "halving")
_BOUNDS: Mapping[str, Mapping[str, float]] = {
    "weight_decay": {"low": 0.0},
    "b1": {"low": 0.0, "below": 1.0},
    "b2": {"low": 0.0, "below": 1.0},
    "eps": {"low": 0.0},
    "decay_steps": {"low": 1},
    "clip_norm": {"above": 0.0},
    "clip_value": {"above": 0.0},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """How theta follows the meta-gradient.

    Raises `ConfigError` for a setting that would do nothing.
    """

    optimizer: str = "adamw"
    """adamw, adam or sgd; or learned: an architecture, the name of bundled weights, or
    "self", the rule that is being trained, with its theta as it is at the start. A
    learned rule follows the horizon of the phase and the meta-loss; of the fields
    below it heeds clipping, `average`, `multiplier`, and `schedule` and `warmup` as
    fractions of `learning_rate`."""
    weights: str | None = None
    """Weights (name or file) of a learned rule; default: those bundled."""
    multiplier: float = 1.0
    """Factor on every update of theta. In a population, where the members' own
    factors start."""
    learning_rate: float = 3e-4
    weight_decay: float | None = None
    """Decoupled, of adamw; default 1e-4. The others have none, and take 0."""
    b1: float | None = None
    """Of adamw, adam, and as the momentum of sgd; default 0.9."""
    b2: float | None = None
    """Of adamw and adam; default 0.999."""
    eps: float | None = None
    """Of adamw and adam; default 1e-8."""
    schedule: str = "constant"
    final_fraction: float = 0.0
    """Where a cosine schedule ends, as a fraction of the learning rate."""
    decay_steps: int | None = None
    """Outer steps over which a cosine schedule falls, or between two steps down of a
    halving one; default: the phase's length. A longer one stops the phase early on its
    way down."""
    warmup: int = 0
    """Outer steps of linear warm-up."""
    clip_norm: float | None = None
    """Global-norm clipping of the meta-gradient."""
    clip_value: float | None = None
    """Elementwise clipping of the meta-gradient, before that by norm."""
    accumulate: int = 1
    """Outer steps whose meta-gradients are averaged, before clipping, for one update of
    theta; schedules count outer steps all the same."""
    average: float = 0.0
    """Decay of a moving average of theta; the average is what is evaluated and
    shipped. 0: none."""

    def __post_init__(self) -> None:
        check_choice(self, "optimizer", (*HAND_MADE, *learned_outer.names()))
        if self.weights is not None and self.optimizer in (*HAND_MADE, "self"):
            raise ConfigError(
                f"OuterConfig.weights = {self.weights!r}: optimizer = "
                f"{self.optimizer!r} takes none; name the architecture they are for"
            )
        check_range(self, "multiplier", above=0.0)
        check_choice(self, "schedule", SCHEDULES)
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "final_fraction", low=0.0, high=1.0)
        check_range(self, "warmup", low=0)
        check_range(self, "accumulate", low=1)
        check_range(self, "average", low=0.0, below=1.0)
        for name, bounds in _BOUNDS.items():
            if getattr(self, name) is not None:
                check_range(self, name, **bounds)
        refuse_idle(self)

    @staticmethod
    def idle(values: Mapping[str, Any]) -> dict[str, str]:
        """Of such settings, those that would do nothing, and why."""
        name = values.get("optimizer", "adamw")
        found = {}
        for own in OWN["adamw"]:
            given = values.get(own)
            none = given is None or (own == "weight_decay" and given == 0.0)
            if not none and own not in OWN.get(name, {}):
                having = [n for n in HAND_MADE if own in OWN[n]]
                found[own] = (
                    f"the outer optimizer {name!r} has no such setting (of "
                    f"{', '.join(having)}); leave it out"
                )
        schedule = values.get("schedule", "constant")
        if values.get("final_fraction") and schedule != "cosine":
            found["final_fraction"] = (
                f"the schedule {schedule!r} has no end to be set; use 'cosine', or "
                "leave it out"
            )
        if values.get("decay_steps") is not None and schedule == "constant":
            found["decay_steps"] = (
                "the schedule 'constant' does not fall; use 'cosine' or 'halving', or "
                "leave it out"
            )
        return found

    @property
    def own(self) -> dict[str, float]:
        """The settings of the hand-made optimizer itself, and of no other."""
        known = OWN.get(self.optimizer, {})
        given = {name: getattr(self, name) for name in known}
        return {k: known[k] if v is None else v for k, v in given.items()}

    @property
    def is_learned(self) -> bool:
        """Whether the rule has meta-parameters of its own."""
        return self.optimizer not in HAND_MADE
