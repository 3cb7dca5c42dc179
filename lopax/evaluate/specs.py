"""What is compared: an optimizer with everything needed to run and to identify it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from lopax._core.config import config_hash
from lopax._core.errors import ConfigError
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Params, Theta
from lopax.architectures import architecture, config_of

Make = Callable[..., optax.GradientTransformation]
"""(num_steps, learning rate [] or None) -> an optax transformation; with a third
argument, theta, for an entry that has meta-parameters."""

LEARNING_RATES: tuple[float, ...] = (
    *(m * 10.0**e for e in range(-7, 0) for m in (1.0, 3.0)),
    1.0,
)
"""The published budget: {1, 3} x 10^k from 1e-7 to 1, fifteen values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """One entry of a comparison.

    Anything that is an optax transformation fits; `update` is called with `value=`,
    the loss, and plain transformations are wrapped so that they may ignore it.
    """

    name: str
    make: Make
    """Builds the transformation inside the compiled run, where the rate is traced."""
    learning_rates: tuple[float, ...] = ()
    """The tuning budget; empty for an optimizer that is used as it is."""
    kind: str = "baseline"
    """"baseline" or "learned"."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else identifies the optimizer, as JSON values. Part of the run's key."""
    eval_params: Callable[[Any, Params], Params] | None = None
    """(state, params) -> the parameters to evaluate, if they are not the trained
    ones (schedule-free methods, averages)."""
    read_out: bool = False
    """Whether the training loss that is scored is that of `eval_params` after all
    updates, not the end of the curve. Say so in `settings`: it changes the result."""
    theta: Theta | None = None
    """Meta-parameters. They are an argument of the compiled run, not constants in it,
    so that other weights of the same rule need no other program."""
    note: str = ""
    """Source and remarks, for the report."""
    reference: str | None = None
    """A text that makes the same optimizer in another process
    (`lopax.evaluate.refs`); None if only this process can run it."""

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not self.name or set(self.name) & set("/\\"):
            raise ConfigError(
                f"OptimizerSpec.name = {self.name!r}: must be a printable name without "
                "slashes"
            )
        if self.kind not in ("baseline", "learned"):
            raise ConfigError(
                f"OptimizerSpec.kind = {self.kind!r}: must be 'baseline' or 'learned'"
            )
        rates = self.learning_rates
        bad = [r for r in rates if not 0.0 < r < math.inf]
        if bad or len(set(rates)) != len(rates):
            raise ConfigError(
                f"OptimizerSpec({self.name!r}).learning_rates = {rates}: must be "
                "positive, finite and different from each other"
            )

    @property
    def tunable(self) -> bool:
        return bool(self.learning_rates)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this optimizer from another, as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "learning_rates": list(self.learning_rates),
            "settings": dict(self.settings),
        }

    def transformation(
        self, num_steps: int, learning_rate: Any, theta: Theta | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """`theta`: in place of the entry's own, with the same shapes."""
        args = [num_steps, learning_rate]
        if self.theta is not None:
            args.append(self.theta if theta is None else theta)
        return optax.with_extra_args_support(self.make(*args))


SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda factor, _: optax.constant_schedule(factor),
    "cosine": optax.cosine_decay_schedule,
}


def learned(
    name: str,
    theta: Theta,
    *,
    label: str | None = None,
    note: str = "",
    lr_multiplier: float = 1.0,
    lr_schedule: str = "constant",
    **config: Any,
) -> OptimizerSpec:
    """A learned optimizer with given meta-parameters, used without any tuning.

    **Arguments:**

    - `name`, `config`: as for `lopax.architecture`.
    - `theta`: meta-parameters in memory; their hash is part of the run's key.
    - `label`: the name in the report; default the architecture's.
    - `lr_multiplier`, `lr_schedule`: a factor on every update, "constant" or falling
        to zero with half a "cosine"; for rules that leave the schedule to the user.

    Raises `ConfigError` for another schedule or a factor that is not positive.
    """
    if lr_schedule not in SCHEDULES or not 0.0 < lr_multiplier < math.inf:
        raise ConfigError(
            f"optimizer {name!r}: lr_multiplier = {lr_multiplier!r} must be > 0, "
            f"lr_schedule = {lr_schedule!r} one of {', '.join(SCHEDULES)}"
        )
    rule = architecture(name, **config)
    plain = lr_multiplier == 1.0 and lr_schedule == "constant"
    settings, defaults = config_of(rule), config_of(architecture(name))

    def make(
        num_steps: int, learning_rate: Any, theta: Theta
    ) -> optax.GradientTransformation:
        del learning_rate
        steps = num_steps if rule.needs_horizon else None
        updates = rule.transformation(theta, steps)
        if plain:
            return updates
        factor = SCHEDULES[lr_schedule](lr_multiplier, num_steps)
        return optax.chain(updates, optax.scale_by_schedule(factor))

    return OptimizerSpec(
        name=label or name,
        make=make,
        theta=theta,
        kind="learned",
        settings={
            "architecture": name,
            "changed": {k: v for k, v in settings.items() if v != defaults[k]},
            "config_hash": config_hash(settings),
            "weights": theta_hash(rule, theta),
            **({} if plain else {"multiplier": lr_multiplier, "schedule": lr_schedule}),
        },
        note=note or rule.reference,
    )


def from_transformation(
    name: str, transformation: optax.GradientTransformation, note: str = ""
) -> OptimizerSpec:
    """Any ready-made optax transformation, used as it is.

    Its settings cannot be seen from outside, so runs are told apart by name alone:
    give a changed optimizer another name.
    """
    return OptimizerSpec(
        name=name, make=lambda num_steps, learning_rate: transformation, note=note
    )


def theta_hash(rule: LearnedOptimizer, theta: Theta, length: int = 12) -> str:
    """A short hash over names, shapes and values of the meta-parameters."""
    digest = hashlib.sha256()
    for path, array in sorted(rule.theta_to_arrays(theta).items()):
        digest.update(f"{path}:{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:length]


def check_unique(specs: list[OptimizerSpec]) -> None:
    """Raises `ConfigError` if two specs share a name."""
    names = [s.name for s in specs]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(
            f"optimizer name {twice[0]!r} is used {names.count(twice[0])} times; give "
            "each entry its own name (label=...)"
        )
