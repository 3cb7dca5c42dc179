"""Settings of a population (see `lopax.meta.population`)."""

from __future__ import annotations

import dataclasses
import math

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax.meta.selection import SELECTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PopulationConfig:
    """A recipe's table [population]."""

    size: int = 10
    interval: int = 10
    """Outer steps between two generations."""
    selection: str = "truncation"
    """A key of `lopax.meta.SELECTIONS`: none, truncation, winner_takes_all."""
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    """A copied member's update multiplier is multiplied by one of these."""
    bootstrap: bool = False
    """A copied member is from now on trained by a theta of the better half, which
    starts anew as its outer optimizer. Needs outer.optimizer = "self"."""
    eval_tasks: int = 32
    """Fixed tasks that members are judged by, with fixed initial parameters and
    batches; over all groups of tasks."""
    eval_steps: int | None = None
    """Inner steps of a judging run; default: the estimator's horizon_high."""
    eval_seed: int = 0
    together: int | None = None
    """Members of a device that run at a time (vmapped); the others after them. None:
    all."""

    def __post_init__(self) -> None:
        for name in ("size", "interval", "eval_tasks"):
            check_range(self, name, low=1)
        for name in ("eval_steps", "together"):
            if getattr(self, name) is not None:
                check_range(self, name, low=1)
        check_choice(self, "selection", SELECTIONS)
        if self.selection != "none" and self.size < 2:
            raise ConfigError(
                f"PopulationConfig.size = {self.size}: selection {self.selection!r} "
                'needs at least 2 members; a single one has selection = "none"'
            )
        if not self.factors or not all(0.0 < x < math.inf for x in self.factors):
            raise ConfigError(
                f"PopulationConfig.factors = {self.factors}: needs finite numbers > 0"
            )
        if self.bootstrap and self.selection == "none":
            raise ConfigError(
                "PopulationConfig.bootstrap = True: only copied members take a new "
                'outer rule, and selection = "none" copies none'
            )

    def check_phase(
        self, name: str, outer_steps: int, log_every: int, *, trains_itself: bool
    ) -> None:
        """Raises `ConfigError` if a phase does not fit."""
        if self.interval % log_every:
            raise ConfigError(
                f"PopulationConfig.interval = {self.interval}: must be a multiple of "
                f"log_every = {log_every}"
            )
        if outer_steps % self.interval:
            raise ConfigError(
                f"phase {name!r}: outer_steps = {outer_steps} must be a multiple of "
                f"the population's interval = {self.interval}"
            )
        if self.bootstrap and not trains_itself:
            raise ConfigError(
                f"phase {name!r}: population.bootstrap needs an outer optimizer of the "
                'same kind as the rule it trains: outer.optimizer = "self"'
            )

    def check_sizes(self, groups: int, devices: int) -> None:
        """Raises `ConfigError` if the members or their tasks do not divide."""
        if self.eval_tasks % groups:
            raise ConfigError(
                f"PopulationConfig.eval_tasks = {self.eval_tasks}: must be a multiple "
                f"of the {groups} groups of tasks"
            )
        if self.size % devices:
            raise ConfigError(
                f"PopulationConfig.size = {self.size}: must be a multiple of the "
                f"{devices} devices"
            )
        local = self.size // devices
        if self.together is not None and local % min(self.together, local):
            raise ConfigError(
                f"PopulationConfig.together = {self.together}: must divide the {local} "
                "members per device"
            )
