"""HUB (`lopax.hub`) as an entry of a comparison."""

from __future__ import annotations

from typing import Any

import optax

from lopax._core.errors import ConfigError
from lopax._core.types import Theta
from lopax.evaluate.specs import OptimizerSpec
from lopax.optax.hybrid import Weighting, mixed


def hub(
    learned: OptimizerSpec,
    hand_made: OptimizerSpec,
    *,
    label: str | None = None,
    **weighting: Any,
) -> OptimizerSpec:
    """A hybrid of two entries; where the hand-made one is tuned, the hybrid is tuned
    over the same learning rates.

    **Arguments:**

    - `learned`: used as it is, without tuning.
    - `label`: the name in the report; default "hub(LEARNED+HAND-MADE)".
    - `weighting`: the hybrid's weights, as for `lopax.hub`: `weighting`,
        `temperature`, `mix`, `inverted`.

    Raises `ConfigError` if `learned` has learning rates to tune, or for weights out of
    range.
    """
    if learned.tunable:
        raise ConfigError(
            f"hub: {learned.name!r} has learning rates to tune, so it is not the "
            f"learned one of the two; fix one, {learned.name + '@0.001'!r}, or "
            "exchange them"
        )
    name = weighting.pop("weighting", "max")
    weigh = Weighting(name, **weighting)

    def make(
        num_steps: int, learning_rate: Any, theta: Theta | None = None
    ) -> optax.GradientTransformation:
        rate = learning_rate if hand_made.tunable else None
        return mixed(
            learned.transformation(num_steps, None, theta),
            hand_made.transformation(num_steps, rate),
            weigh,
        )

    mark = "" if name == "max" else f"-{name}"
    return OptimizerSpec(
        name=label or f"hub{mark}({learned.name}+{hand_made.name})",
        make=make,
        theta=learned.theta,
        learning_rates=hand_made.learning_rates,
        kind="learned",
        settings={
            "learned": learned.identity,
            "hand_made": hand_made.identity,
            "weighting": name,
            **weighting,
        },
        note=f"HUB, arXiv 2305.16823, of {learned.name} and {hand_made.name}",
    )
