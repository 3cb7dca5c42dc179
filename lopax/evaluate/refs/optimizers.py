"""Optimizers by name: what the command line and job lists speak.

`adam` (a baseline, tuned), `adam@0.001` (at one learning rate), `celo` (a
learned optimizer with its bundled weights), `celo:weights.safetensors` (with others),
each optionally as `LABEL=...`. `muon[schedule=cosine,output=1]@0.02` is a baseline with
other settings (`lopax.evaluate.baselines.FORMS`). `hub:celo+adam@0.001` is a hybrid of
two (`lopax.hub`), `hub-fixed:...` and `hub-published:...` its other weightings.
`celo2@2` multiplies a learned optimizer's updates by 2, `celo2@2cosine` by 2 falling to
0. The sets `published`, `contemporary`, `tuning_free` and `baselines` (all of these)
stand for their members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax

from lopax._core.errors import ConfigError, UnknownName
from lopax.architectures import ARCHITECTURES, config_of
from lopax.evaluate.baselines import (
    BASELINES,
    CONTEMPORARY,
    FORMS,
    PUBLISHED,
    TUNING_FREE,
    at_rate,
    configured,
)
from lopax.evaluate.hybrids import hub
from lopax.evaluate.specs import OptimizerSpec, from_transformation, learned
from lopax.pretrained.index import read_weights
from lopax.theta import bundled_weights, load_optimizer

SETS = {
    "published": PUBLISHED,
    "contemporary": CONTEMPORARY,
    "tuning_free": TUNING_FREE,
    "baselines": (*PUBLISHED, *CONTEMPORARY, *TUNING_FREE),
}


def optimizer_specs(
    references: Sequence[str | OptimizerSpec | optax.GradientTransformation],
) -> list[OptimizerSpec]:
    """Specs of a mixed list of names, specs and optax transformations.

    Transformations are called `custom_1`, `custom_2` and so on. Raises `UnknownName`
    and `ConfigError`.
    """
    specs: list[OptimizerSpec] = []
    customs = 0
    for reference in references:
        if isinstance(reference, OptimizerSpec):
            specs.append(reference)
        elif isinstance(reference, optax.GradientTransformation):
            customs += 1
            specs.append(from_transformation(f"custom_{customs}", reference))
        elif reference in SETS:
            specs += [optimizer_spec(name) for name in SETS[reference]]
        else:
            specs.append(optimizer_spec(reference))
    return specs


def optimizer_spec(reference: str) -> OptimizerSpec:
    """The optimizer a text stands for; the forms are in the module docstring."""
    plain, settings = _settings(reference)
    label, _, rest = plain.rpartition("=")
    name, _, weights = rest.partition(":")
    name, _, rate = name.partition("@")
    if settings is not None and name not in FORMS:
        raise ConfigError(
            f"optimizer {reference!r}: settings in brackets are for {', '.join(FORMS)}"
        )
    if name in ARCHITECTURES:
        spec = _learned(reference, name, weights, rate)
    elif rate:
        spec = at_rate(_baseline(name, settings), _rate(reference, rate))
    elif name.partition("-")[0] == "hub":
        spec = _hub(reference, name, weights)
    elif weights:
        raise UnknownName("architecture", name, ARCHITECTURES)
    elif name in BASELINES:
        spec = _baseline(name, settings)
    else:
        raise UnknownName("optimizer", name, [*ARCHITECTURES, *BASELINES, *SETS])
    return dataclasses.replace(spec, name=label or spec.name, reference=reference)


def _baseline(name: str, settings: dict[str, Any] | None) -> OptimizerSpec:
    return configured(name, **settings) if settings else BASELINES[name]


def _settings(reference: str) -> tuple[str, dict[str, Any] | None]:
    """A text without its settings in brackets, and these: numbers, true, false, none,
    or words. `NAME[key=value,...]`, behind a label and before a rate."""
    before, bracket, rest = reference.partition("[")
    inside, closed, after = rest.partition("]")
    if not bracket or not closed or "/" in before:
        return reference, None
    words: dict[str, Any] = {"none": None, "true": True, "false": False}
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in inside.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                f"optimizer {reference!r}: {part!r} is no setting; write key=value"
            )
        found[key.strip()] = words.get(value.strip(), _number(value.strip()))
    return before + after, found


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _rate(reference: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0.0:
        raise ConfigError(f"optimizer {reference!r}: {text!r} is no learning rate > 0")
    return rate


def _hub(reference: str, name: str, members: str) -> OptimizerSpec:
    learned, plus, hand_made = members.rpartition("+")
    if not plus:
        raise ConfigError(
            f"optimizer {reference!r}: write hub:LEARNED+HAND_MADE, such as "
            "'hub:celo+adam@0.001'"
        )
    return hub(
        optimizer_spec(learned),
        optimizer_spec(hand_made),
        weighting=name.partition("-")[2] or "max",
    )


def _learned(reference: str, name: str, weights: str, rate: str) -> OptimizerSpec:
    factor = rate.removesuffix("cosine")
    try:
        multiplier = float(factor or 1.0)
    except ValueError:
        raise ConfigError(
            f"optimizer {reference!r}: {rate!r} is no factor on a learned rule's "
            "updates; write it as in 'celo2@2' or 'celo2@2cosine'"
        ) from None
    file = read_weights(weights) if weights else bundled_weights(name)
    rule, theta = load_optimizer(file, name, {})
    source = Path(weights).name if weights else "bundled"
    return learned(
        name,
        theta,
        label=f"{name}@{rate}" if rate else None,
        note=f"{rule.reference}; weights: {source}",
        lr_multiplier=multiplier,
        lr_schedule="constant" if factor == rate else "cosine",
        **config_of(rule),
    )
