"""Settings of the meta-gradient's estimator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lopax.estimators import ESTIMATORS, Flatness, Objective
from lopax.estimators.flatness import MEASURES
from lopax.estimators.regularised import check_differentiable
from lopax.meta.idle import refuse_idle

OWN: Mapping[str, Any] = {"truncation": 50, "sigma": 0.01, "sign": None}
"""Settings that only some estimators have, and what they are if not given."""

_PENALTY = ("weight", "iterations", "start")
"""Settings of a penalty: `flatness_weight` and so on."""

NOT_SEARCHED = (
    "particles",
    *OWN,
    "staggered",
    "chunk",
    "first_order",
    "flatness",
    *(f"flatness_{name}" for name in _PENALTY),
)
"""Settings that a search (`lopax.meta.search`), which runs whole problems and follows
no meta-gradient, has no use for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """How the meta-gradient is estimated.

    Raises `ConfigError` for a setting that would do nothing.
    """

    name: str = "pes"
    particles: int = 32
    """Inner problems at a time, over all groups of tasks; evolution strategies run two
    trajectories of each."""
    truncation: int | None = None
    """Inner steps per outer step (all but the full-unroll estimators); default 50."""
    sigma: float | None = None
    """Standard deviation of the perturbations (evolution strategies); default 0.01."""
    sign: float | None = None
    """Replace loss differences by their sign times this (evolution strategies)."""
    objective: str = "mean"
    """Meta-loss of a run: "mean", "last" or "min" of its losses, or "last_recompute",
    the mean over `recompute` fresh batches at its end."""
    objective_split: str = "train"
    """Data the meta-loss is taken on: "train", "valid" (inner validation),
    "extra_valid" (outer validation, never shown to a rule) or "test"."""
    recompute: int | None = None
    """Batches of "last_recompute"; default 10."""
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
    flatness_weight: float | None = None
    """Of such a penalty; default 0.01."""
    flatness_iterations: int | None = None
    """Of such a penalty; default 10."""
    flatness_start: float | None = None
    """Of such a penalty: the share of an inner run after which it acts; default 0."""

    def __post_init__(self) -> None:
        refuse_idle(self)
        if self.flatness != "none":
            check_differentiable(ESTIMATORS[self.name], self.penalty)

    @staticmethod
    def idle(values: Mapping[str, Any]) -> dict[str, str]:
        """Of such settings, those that would do nothing, and why. Raises
        `UnknownName`."""
        name = values.get("name", "pes")
        kind = ESTIMATORS[name]
        found = {}
        for own in OWN:
            having = [n for n in ESTIMATORS if own in _fields(ESTIMATORS[n])]
            if values.get(own) is not None and name not in having:
                found[own] = (
                    f"the estimator {name!r} has no such setting (of "
                    f"{', '.join(having)}); leave it out"
                )
        if values.get("first_order") and not kind.uses_backprop:
            having = [n for n in ESTIMATORS if ESTIMATORS[n].uses_backprop]
            found["first_order"] = (
                f"the estimator {name!r} differentiates nothing (these do: "
                f"{', '.join(having)}); leave it out"
            )
        if values.get("flatness", "none") == "none":
            for own in (f"flatness_{name}" for name in _PENALTY):
                if values.get(own) is not None:
                    found[own] = (
                        f"there is no penalty; choose flatness = one of "
                        f"{', '.join(MEASURES)}, or leave it out"
                    )
        if values.get("recompute") is not None:
            objective = values.get("objective", "mean")
            if objective != "last_recompute":
                found["recompute"] = (
                    f"the objective {objective!r} recomputes nothing; use "
                    "'last_recompute', or leave it out"
                )
        return found

    @property
    def own(self) -> dict[str, Any]:
        """The settings of the estimator itself, and of no other."""
        known = _fields(ESTIMATORS[self.name])
        given = {name: getattr(self, name) for name in OWN if name in known}
        return {k: OWN[k] if v is None else v for k, v in given.items()}

    @property
    def penalty(self) -> Flatness:
        """Raises `ConfigError` for an unknown measure."""
        given = {own: getattr(self, f"flatness_{own}") for own in _PENALTY}
        given = {k: v for k, v in given.items() if v is not None}
        return Flatness(measure=self.flatness, **given)

    @property
    def looks(self) -> Objective:
        """Which losses the meta-loss is made of."""
        given = {} if self.recompute is None else {"recompute": self.recompute}
        return Objective(kind=self.objective, split=self.objective_split, **given)


def _fields(estimator: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(estimator)}
