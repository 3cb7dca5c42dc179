"""What the table of baselines is made with: registries, variants, fixed rates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import ConfigError
from lopax._core.registry import Registry
from lopax.evaluate.baselines.adamw import ScheduleFreeAdamW
from lopax.evaluate.baselines.averages import averaged_params, schedule_free_params
from lopax.evaluate.baselines.muon import ScheduleFreeMuon
from lopax.evaluate.specs import LEARNING_RATES, Make, OptimizerSpec

BASELINES: Registry[OptimizerSpec] = Registry("baseline")
"""Every hand-made optimizer by name, with the rates it is tuned over."""


def baseline(name: str) -> OptimizerSpec:
    """The baseline called `name`; raises `UnknownName` with near matches."""
    return BASELINES[name]


def default_rate(name: str, learning_rate: float) -> OptimizerSpec:
    """A baseline at one fixed learning rate, as people use it who do not tune.

    Raises `ConfigError` unless the rate is positive.
    """
    return at_rate(BASELINES[name], learning_rate)


def at_rate(spec: OptimizerSpec, learning_rate: float) -> OptimizerSpec:
    """`spec` at one learning rate.

    Raises `ConfigError` unless the rate is positive and the baseline has one.
    """
    if not 0.0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate = {learning_rate!r}: must be a number > 0")
    if not spec.tunable:
        raise ConfigError(
            f"{spec.name!r} has one setting and no learning rate to set; leave "
            f"'@{learning_rate:g}' out"
        )
    return dataclasses.replace(
        spec,
        name=f"{spec.name}@{learning_rate:g}",
        make=lambda num_steps, _: spec.make(num_steps, learning_rate),
        learning_rates=(),
        settings={**spec.settings, "of": spec.name, "learning_rate": learning_rate},
        note=f"{spec.name}, untuned",
    )


class Form(NamedTuple):
    """A baseline whose settings can be chosen."""

    settings: Any  # a frozen dataclass with `make(num_steps, learning_rate)`
    rates: tuple[float, ...]
    note: str


FORMS: Registry[Form] = Registry("baseline with settings")


def configured(name: str, **settings: Any) -> OptimizerSpec:
    """A baseline of `FORMS` with other settings.

        configured("muon", schedule="cosine", output=1.0)

    Its name says what was changed, `muon[output=1.0,schedule=cosine]`, and its runs
    have keys of their own. Raises `UnknownName` for a baseline or a setting that is not
    there, `ConfigError` for a value that is out of range.
    """
    form = FORMS[name]
    given = {**to_dict(form.settings), **settings}
    chosen = from_dict(type(form.settings), given, where=name)
    said = ",".join(f"{k}={v}" for k, v in sorted(settings.items()))
    return _spec(f"{name}[{said}]" if said else name, chosen, form)


def _spec(name: str, chosen: Any, form: Form) -> OptimizerSpec:
    averages = getattr(chosen, "average", None) is not None
    free = isinstance(chosen, (ScheduleFreeAdamW, ScheduleFreeMuon))
    read = averaged_params if averages else schedule_free_params if free else None
    return OptimizerSpec(
        name=name,
        make=chosen.make,
        learning_rates=form.rates,
        settings={"rule": type(chosen).__name__, **to_dict(chosen), **_scored(read)},
        eval_params=read,
        read_out=read is not None,
        note=form.note,
    )


def _scored(read: Any) -> dict[str, str]:
    return {} if read is None else {"scored_at": "the average"}


def form(name: str, settings: Any, rates: tuple[float, ...], note: str) -> None:
    """A baseline whose settings can be chosen, with these as default."""
    made = FORMS.add(name, Form(settings, rates, note))
    BASELINES.add(name, _spec(name, settings, made))


def free(name: str, make: Any, note: str, read: Any = None, **settings: Any) -> None:
    """A baseline with one setting, `make(num_steps)`."""
    BASELINES.add(
        name,
        OptimizerSpec(
            name=name,
            make=lambda num_steps, _: make(num_steps),
            settings={**settings, **_scored(read)},
            eval_params=read,
            read_out=read is not None,
            note=note,
        ),
    )


def add(
    name: str,
    make: Make,
    note: str,
    rates: tuple[float, ...] = LEARNING_RATES,
    eval_params: Any = None,
    **settings: Any,
) -> None:
    """A baseline that is tuned over `rates`: `make(num_steps, learning rate)`."""
    BASELINES.add(
        name,
        OptimizerSpec(
            name=name,
            make=make,
            learning_rates=rates,
            settings=settings,
            eval_params=eval_params,
            note=note,
        ),
    )
