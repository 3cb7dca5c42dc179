"""The section on a learned scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np

from lopax.analysis import drawing
from lopax.analysis.explanation import Drawing, Section, Subject
from lopax.analysis.scheduler_curves import (
    loss_step_response,
    multipliers,
    typical_losses,
)

HORIZONS = (200, 2_000, 20_000)
MIDDLE = HORIZONS[1]
FACTORS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


def schedule(subject: Subject) -> Section:
    """When it takes large steps."""
    optimizer, theta = subject.optimizer, subject.theta
    scale = _step_mult(optimizer)
    by_loss = {
        name: scale * multipliers(optimizer, theta, losses)
        for name, losses in typical_losses(MIDDLE).items()
    }
    by_horizon = {
        f"{n:,} steps": scale
        * multipliers(optimizer, theta, typical_losses(n)["falling"])
        for n in HORIZONS
    }
    answers = loss_step_response(optimizer, theta, FACTORS, num_steps=MIDDLE)
    usual = by_loss["falling"]
    top = int(np.argmax(usual))
    settled = slice(MIDDLE // 20, None)
    spread = np.max(list(by_loss.values()), 0) / np.min(list(by_loss.values()), 0)
    where = settled.start + int(np.argmax(spread[settled]))
    doubled = answers[FACTORS.index(2.0)]
    horizon_spread = _horizon_spread(by_horizon)
    headline = (
        f"Its step scale starts at {usual[0]:.2g}, is largest ({usual[top]:.2g}) after "
        f"{100 * top / MIDDLE:.0f} % of the run and ends at {usual[-1]:.2g}; if the "
        f"loss suddenly doubles, it goes to {doubled:.2f} times its value."
    )
    text = [
        "The scheduler sees how much of the run is done and the history of the loss. "
        "Here it runs alone on made-up losses, so that what it does of itself can be "
        "told from what it does because of the loss.",
        f"On a loss that falls as in ordinary training, the scale starts at "
        f"{usual[0]:.3g}, peaks at {usual[top]:.3g} after {100 * top / MIDDLE:.0f} % "
        f"of {MIDDLE:,} steps, is {usual[MIDDLE // 2]:.3g} half-way and ends at "
        f"{usual[-1]:.3g}: {usual[top] / usual[-1]:.3g} times less than at its peak. "
        f"With {HORIZONS[0]:,} or {HORIZONS[2]:,} steps the curve against the fraction "
        f"done differs by up to a factor {horizon_spread:.3g} after the first "
        "twentieth.",
        f"Between the five losses drawn, the scale at one moment differs by up to a "
        f"factor {spread[where]:.3g} (after {100 * where / MIDDLE:.0f} % of the run). "
        f"{_reaction(doubled, answers[FACTORS.index(0.5)])}",
    ]
    share = np.arange(MIDDLE) / MIDDLE
    grid = np.linspace(0, 1, 200, endpoint=False)
    return Section(
        "When it takes large steps",
        text,
        [
            Drawing(
                "Against the fraction of training",
                drawing.curves(
                    grid,
                    {
                        name: np.interp(grid, np.arange(len(y)) / len(y), y)
                        for name, y in by_horizon.items()
                    },
                    "fraction of the run done",
                    "step scale",
                    log="y",
                ),
                "A falling loss, runs of three lengths.",
            ),
            Drawing(
                "Against the loss",
                drawing.curves(
                    share, by_loss, "fraction of the run done", "step scale", log="y"
                ),
                f"Five losses, runs of {MIDDLE:,} steps.",
            ),
            Drawing(
                "If the loss jumps",
                drawing.curves(
                    FACTORS,
                    {"": answers},
                    "loss × from half-way on",
                    "scale × a twentieth of the run later",
                    log="x",
                ),
                "The loss is multiplied half-way through.",
            ),
        ],
        headline=headline,
    )


def _step_mult(optimizer: Any) -> float:
    """Both rules with a scheduler have a base step its multiplier scales."""
    return optimizer.config.step_mult


def _horizon_spread(curves: dict[str, np.ndarray]) -> float:
    grid = np.linspace(0.05, 0.99, 200)
    table = [np.interp(grid, np.arange(len(y)) / len(y), y) for y in curves.values()]
    return float(np.max(np.max(table, axis=0) / np.min(table, axis=0)))


def _reaction(doubled: float, halved: float) -> str:
    def verb(ratio: float) -> str:
        if abs(ratio - 1) < 0.03:
            return f"hardly changes it (× {ratio:.2f})"
        return f"{'raises' if ratio > 1 else 'lowers'} it to × {ratio:.2f}"

    return (
        f"A loss that suddenly doubles half-way {verb(doubled)}; one that halves "
        f"{verb(halved)}."
    )
