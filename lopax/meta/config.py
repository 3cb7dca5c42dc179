"""What a meta-training run is: one frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any

from lopax._core.config import (
    check_choice,
    check_name,
    check_range,
    from_dict,
    merge,
    to_dict,
)
from lopax._core.errors import ConfigError
from lopax.meta import learned_outer
from lopax.meta.population_config import PopulationConfig
from lopax.meta.search_config import SearchConfig
from lopax.tasks import FOUR_DATASETS, NETWORKS, FineTuningSettings
from lopax.tasks.rl import AGENTS

AUGMENTATIONS = ("none", "global", "tensor", "parameter", "mixed")
HAND_MADE = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine", "halving")
META_LOSSES = ("loss", "log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """A group of training tasks: one network on one or more data sets.

    A run may have several groups; each gets an equal part of the particles.
    """

    datasets: tuple[str, ...] = FOUR_DATASETS
    """Names from `lopax list datasets`; one stratum each."""
    network: str = "mlp"
    """A key of `lopax.tasks.NETWORKS`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of that network (hidden, batch_size, size...). The defaults of "mlp" are the
    published meta-training task: 8x8 grey, one layer of 32 ReLU units, batch 64."""
    augment: str = "global"
    """Reparametrisation level; "mixed" draws one per task, as VeLO."""
    augment_low: float = 1e-3
    augment_high: float = 1e3
    degrade: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Probabilities of worse gradients, see `lopax.tasks.Degradations` (the others are
    zero here); {}: none."""
    meta_loss: str = "loss"
    """"log": the logarithm of the loss (see `lopax.tasks.LogLoss`)."""

    def __post_init__(self) -> None:
        check_choice(self, "augment", AUGMENTATIONS)
        check_choice(self, "network", NETWORKS)
        check_choice(self, "meta_loss", META_LOSSES)
        check_range(self, "augment_low", above=0.0)
        check_range(self, "augment_high", low=self.augment_low)
        if not self.datasets:
            raise ConfigError("TasksConfig.datasets = (): name at least one data set")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentsConfig:
    """A group of training tasks: agents that learn to act in one environment."""

    environment: str
    """A name of `lopax.tasks.rl.ENVIRONMENTS`, or gymnax:NAME."""
    agent: str = "a2c"
    """A key of `lopax.tasks.rl.AGENTS`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the agent (hidden, envs, length, gamma...). `envs` is how many environments
    each agent's gradients are averaged over."""

    def __post_init__(self) -> None:
        check_choice(self, "agent", AGENTS)


GroupConfig = TasksConfig | AgentsConfig | FineTuningSettings
"""A group of training tasks; the settings it has tell which kind it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """How the meta-gradient is estimated."""

    name: str = "pes"
    particles: int = 32
    """Inner problems at a time, over all groups of tasks; evolution strategies run two
    trajectories of each."""
    truncation: int = 50
    """Inner steps per outer step (all but the full-unroll estimators)."""
    sigma: float = 0.01
    """Standard deviation of the perturbations (evolution strategies)."""
    sign: float | None = None
    """Replace loss differences by their sign times this."""
    objective: str = "mean"
    """Meta-loss of a run: "mean", "last" or "min" of its losses, or "last_recompute",
    the mean over `recompute` fresh batches at its end."""
    objective_split: str = "train"
    """Data the meta-loss is taken on: "train", "valid" (inner validation),
    "extra_valid" (outer validation, never shown to a rule) or "test"."""
    recompute: int = 10
    validation_every: int = 0
    """Inner steps between validation losses shown to the rule; 0: none."""
    horizon_low: int = 100
    horizon_high: int = 2000
    horizon_averaged: bool = False
    """Weigh the losses of runs of `horizon_high` steps as drawn lengths would on
    average, instead of drawing lengths."""
    staggered: bool = True
    chunk: int | None = 8
    """Particles that run together; a cache-sized chunk is fastest on a CPU."""
    emphasis: float = 0.0
    """How much later losses of a run count; see `lopax.estimators.Unroller`."""
    first_order: bool = False
    """Treat inner gradients as constants (back-propagating estimators)."""
    flatness: str = "none"
    """Penalty on the inner loss's curvature (back-propagating estimators): a measure of
    `lopax.estimators.Flatness`, or "none"."""
    flatness_weight: float = 1e-2
    flatness_iterations: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """How theta follows the meta-gradient."""

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
    weight_decay: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
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
        check_range(self, "weight_decay", low=0.0)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        check_range(self, "final_fraction", low=0.0, high=1.0)
        check_range(self, "warmup", low=0)
        check_range(self, "accumulate", low=1)
        check_range(self, "average", low=0.0, below=1.0)
        if self.decay_steps is not None:
            check_range(self, "decay_steps", low=1)
        if self.clip_norm is not None:
            check_range(self, "clip_norm", above=0.0)
        if self.clip_value is not None:
            check_range(self, "clip_value", above=0.0)

    @property
    def is_learned(self) -> bool:
        """Whether the rule has meta-parameters of its own."""
        return self.optimizer not in HAND_MADE


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

    def settings_of(self, phase: PhaseConfig) -> dict[str, Any]:
        """The architecture's settings in a phase."""
        return merge(self.settings, phase.settings)

    def estimator_of(self, phase: PhaseConfig) -> EstimatorConfig:
        values = merge(to_dict(self.estimator), phase.estimator)
        where = f"phase {phase.name!r} estimator"
        return from_dict(EstimatorConfig, values, where)

    def outer_of(self, phase: PhaseConfig) -> OuterConfig:
        values = merge(to_dict(self.outer), phase.outer)
        return from_dict(OuterConfig, values, f"phase {phase.name!r} outer")

    @property
    def starts_fresh(self) -> bool:
        """Whether theta is drawn at random, all of it."""
        return self.start_from is None and not self.start_parts

    @property
    def total_steps(self) -> int:
        return sum(p.outer_steps for p in self.phases)
