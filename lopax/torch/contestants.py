"""What is compared on PyTorch models: learned rules and torch's own optimizers.

Names are those of `lopax.evaluate`: "celo" (bundled weights), "celo:FILE", "adam"
(tuned), "adam@0.001" (at one learning rate), each optionally as "LABEL=...".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lopax._core.errors import ConfigError, UnknownName
from lopax._core.registry import Registry
from lopax.pretrained.index import list_weights, read_weights

LEARNING_RATES: tuple[float, ...] = (
    *(m * 10.0**e for e in range(-7, 0) for m in (1.0, 3.0)),
    1.0,
)
"""{1, 3} x 10^k from 1e-7 to 1: the fifteen of `lopax.evaluate`."""

Make = Callable[[list[Any], int, "float | None"], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One entry of a comparison."""

    name: str
    make: Make
    """((name, parameter) pairs, num_steps, learning rate or None) -> optimizer."""
    rates: tuple[float, ...] = ()
    """Learning rates to be tried; empty for an optimizer that is used as it is."""
    learned: bool = False
    """Whether `step` wants the loss."""
    note: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


BASELINES: Registry[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = Registry(
    "baseline for PyTorch"
)
"""Names to a class of torch.optim and its settings beside the learning rate."""
for _name, _class, _settings in (
    ("adam", torch.optim.Adam, {}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 1e-4}),
    (
        "nadamw",
        torch.optim.NAdam,
        {"weight_decay": 1e-4, "decoupled_weight_decay": True},
    ),
    ("radam", torch.optim.RAdam, {}),
    ("sgd", torch.optim.SGD, {}),
    ("sgdm", torch.optim.SGD, {"momentum": 0.9}),
    ("rmsprop", torch.optim.RMSprop, {}),
    ("adagrad", torch.optim.Adagrad, {}),
):
    BASELINES.add(_name, (_class, _settings))


def contestant(
    entry: str | tuple[str, Callable[..., Any]],
    rates: Sequence[float] | None,
    rules: Registry[Any],
) -> Contestant:
    """The contestant a name, or a pair (name, function of the parameters), stands for.

    **Arguments:**

    - `rates`: learning rates of tuned baselines; None: `LEARNING_RATES`.
    - `rules`: architecture names to optimizer classes.

    Raises `UnknownName`, and `ConfigError` for a learning rate that is none.
    """
    if not isinstance(entry, str):
        label, function = entry
        return Contestant(
            name=label,
            make=lambda params, steps, rate: function(params),
            note="given as a function",
        )
    label, _, rest = entry.rpartition("=")
    name, _, weights = rest.partition(":")
    name, _, fixed = name.partition("@")
    if name in rules:
        return _learned(label or name, rules[name], name, weights)
    if name not in BASELINES or weights:
        raise UnknownName("optimizer for PyTorch", name, [*rules, *BASELINES])
    cls, settings = BASELINES[name]
    note = f"torch.optim.{cls.__name__}"
    tried = (_rate(entry, fixed),) if fixed else tuple(rates or LEARNING_RATES)
    if not fixed and (len(set(tried)) != len(tried) or min(tried) <= 0):
        raise ConfigError(
            f"learning_rates = {tried}: must be positive and different from each other"
        )

    def make(params: list[Any], steps: int, rate: float | None) -> Any:
        del steps
        rate = tried[0] if rate is None else rate
        return cls([p for _, p in params], lr=rate, **settings)  # type: ignore[call-arg]

    return Contestant(
        name=label or (f"{name}@{tried[0]:g}" if fixed else name),
        make=make,
        rates=() if fixed else tried,
        note=f"{note}, untuned" if fixed else note,
        settings={**settings, "learning_rate": tried[0]} if fixed else settings,
    )


def _learned(label: str, cls: Any, name: str, weights: str) -> Contestant:
    if not weights and name not in list_weights():
        raise UnknownName(
            f"bundled weights for {name!r} (say {name}:FILE):", name, list_weights()
        )
    header = read_weights(weights or name).header

    def make(params: list[Any], steps: int, rate: float | None) -> Any:
        del rate
        return cls(params, num_steps=steps, weights=weights or name)

    source = Path(weights).name if weights else "bundled"
    return Contestant(
        name=label,
        make=make,
        learned=True,
        note=f"weights: {source}",
        settings={"architecture": name, "weights": header.get("checksum", "")[:12]},
    )


def _rate(entry: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.0 < rate < float("inf"):
        raise ConfigError(f"optimizer {entry!r}: {text!r} is no learning rate > 0")
    return rate
