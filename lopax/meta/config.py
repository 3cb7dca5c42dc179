"""What a meta-training run is: one frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any

from lopax._core.config import check_name, check_range, from_dict, merge, to_dict
from lopax._core.errors import ConfigError
from lopax.meta import learned_outer
from lopax.meta.estimator_config import NOT_SEARCHED, EstimatorConfig
from lopax.meta.idle import overridden
from lopax.meta.outer_config import OuterConfig
from lopax.meta.population_config import PopulationConfig
from lopax.meta.search_config import SearchConfig
from lopax.meta.task_config import GroupConfig, TasksConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One stretch of meta-training; later phases start from the theta of earlier
    ones. `settings`, `estimator` and `outer` override the run's."""

    name: str = "all"
    outer_steps: int = 1000
    trainable: tuple[str, ...] = ("*",)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    estimator: dict[str, Any] = dataclasses.field(default_factory=dict)
    outer: dict[str, Any] = dataclasses.field(default_factory=dict)
    search: SearchConfig | None = None
    """Search among candidates instead of following a meta-gradient; an outer step is a
    generation. For a few dozen trainable numbers."""

    def __post_init__(self) -> None:
        check_name(self, "name")
        check_range(self, "outer_steps", low=1, high=2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A meta-training run."""

    name: str = "celo"
    architecture: str = "celo"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the architecture."""
    start_from: str | None = None
    """Weights (name or file) to start from instead of a fresh theta."""
    start_parts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Parts of theta, by their name at its top ("rule", "scheduler"), to take from
    other weights than the rest: {part: name or file}."""
    seed: int = 0
    tasks: tuple[GroupConfig, ...] = (TasksConfig(),)
    estimator: EstimatorConfig = dataclasses.field(default_factory=EstimatorConfig)
    outer: OuterConfig = dataclasses.field(default_factory=OuterConfig)
    phases: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    population: PopulationConfig | None = None
    """Train a population instead of one theta."""
    published_freezing: bool = False
    """Perturb and decay frozen meta-parameters too, as the published Celo code does
    (only their gradient is zero). For reproductions."""
    log_every: int = 10
    """Outer steps per compiled call and per line of metrics."""
    eval_every: int = 500
    """Outer steps between evaluations on the validation tasks; 0: only at the end."""
    eval_tasks: tuple[str, ...] = ("digits_mlp_tanh", "digits_conv")
    """Validation tasks (`lopax list tasks`), never trained on."""
    eval_steps: int = 300
    checkpoint_minutes: float = 3.0

    def __post_init__(self) -> None:
        check_name(self, "name")
        check_range(self, "seed", low=-(2**63), high=2**63 - 1)
        check_range(self, "log_every", low=1)
        check_range(self, "eval_every", low=0)
        check_range(self, "eval_steps", low=1)
        check_range(self, "checkpoint_minutes", above=0.0)
        if not self.phases:
            raise ConfigError("RunConfig.phases = (): a run needs at least one phase")
        if not self.tasks:
            raise ConfigError("RunConfig.tasks = (): a run needs at least one group")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"RunConfig.phases are called {names}: each needs a name of its own"
            )
        for phase in self.phases:
            if phase.outer_steps % self.log_every:
                raise ConfigError(
                    f"phase {phase.name!r}: outer_steps = {phase.outer_steps} must be "
                    f"a multiple of log_every = {self.log_every}"
                )
        if self.eval_every % self.log_every:
            raise ConfigError(
                f"RunConfig.eval_every = {self.eval_every}: must be a multiple of "
                f"log_every = {self.log_every}"
            )
        for phase in self.phases:
            self.estimator_of(phase)
            outer = self.outer_of(phase)
            if self.population is not None and phase.search is not None:
                raise ConfigError(
                    f"phase {phase.name!r}: search and population are two ways to have "
                    "many candidates; leave one out"
                )
            if self.population is not None:
                self.population.check_phase(
                    phase.name,
                    phase.outer_steps,
                    self.log_every,
                    trains_itself=outer.optimizer == learned_outer.SELF,
                )
        self._check_searches()

    def _check_searches(self) -> None:
        """Raises `ConfigError` for what a search would not use."""
        searching = [phase for phase in self.phases if phase.search is not None]
        for phase in searching:
            given = [f"estimator.{n}" for n in phase.estimator if n in NOT_SEARCHED]
            given += [f"outer.{n}" for n in phase.outer]
            _refuse_unsearched(given, f"phase {phase.name!r}")
        if len(searching) == len(self.phases):
            usual = EstimatorConfig(name=self.estimator.name)
            changed = [
                f"estimator.{n}"
                for n in NOT_SEARCHED
                if getattr(self.estimator, n) != getattr(usual, n)
            ]
            if self.outer != OuterConfig():
                changed.append("outer")
            _refuse_unsearched(changed, f"run {self.name!r} searches in every phase")

    def settings_of(self, phase: PhaseConfig) -> dict[str, Any]:
        """The architecture's settings in a phase."""
        return merge(self.settings, phase.settings)

    def estimator_of(self, phase: PhaseConfig) -> EstimatorConfig:
        """The estimator of a phase; one that names another keeps what both have."""
        base = to_dict(self.estimator)
        values = overridden(EstimatorConfig, base, phase.estimator, "name")
        where = f"phase {phase.name!r} estimator"
        return from_dict(EstimatorConfig, values, where)

    def outer_of(self, phase: PhaseConfig) -> OuterConfig:
        """The outer optimizer of a phase; another one keeps what both have."""
        base = to_dict(self.outer)
        values = overridden(OuterConfig, base, phase.outer, "optimizer")
        return from_dict(OuterConfig, values, f"phase {phase.name!r} outer")

    @property
    def starts_fresh(self) -> bool:
        """Whether theta is drawn at random, all of it."""
        return self.start_from is None and not self.start_parts

    @property
    def total_steps(self) -> int:
        return sum(p.outer_steps for p in self.phases)


def _refuse_unsearched(given: list[str], where: str) -> None:
    if given:
        raise ConfigError(
            f"{where}: {', '.join(given)} would do nothing in a search; leave it out "
            "(candidates, their spread and their problems: [phases.search])"
        )
