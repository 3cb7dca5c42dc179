"""R8: which mechanisms a recurrent optimizer learns on quadratics.

Maheswaranathan, Sussillo, Metz, Sun and Sohl-Dickstein, "Reverse engineering learned
optimizers reveals known and novel mechanisms" (2020, arXiv 2011.02159). A GRU is
meta-trained by back-propagation through whole runs; then `lopax.analysis` looks for
momentum (a slow real mode at a resting point), clipping (a flat update function) and a
low-dimensional state. Heavy-ball momentum with the constants of the theory is reported
beside it: on these problems it wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lopax.reproductions.cases import CaseResults, CaseStudy
from lopax.reproductions.mechanisms_measures import (
    ADAPTATION,
    AT_SIZE,
    CLIPPING,
    MOMENTUM,
    SCHEDULE,
    SETTINGS,
    gradient_descent,
    gru,
    heavy_ball,
)
from lopax.reproductions.outcome import Check, Panel, Table


def judge(results: CaseResults) -> Sequence[Check]:
    """Every statement must hold for every meta-seed; NaN never does."""

    def of(measure: str) -> list[float]:
        return results.values("GRU", measure)

    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{v:.3g}" for v in values)

    mine, plain = of("objective"), results.values("gradient descent", "objective")
    theory = results.mean("heavy ball", "objective")
    slow = of(MOMENTUM)
    flat, sizes = of(CLIPPING), of("components for 90 %")
    return (
        Check(
            "mean loss below 0.6 times that of gradient descent at its best rate",
            all(a < 0.6 * b for a, b in zip(mine, plain, strict=True)),
            f"{listed(mine)} against {plain[0]:.3g} (heavy ball with the constants of "
            f"the theory: {theory:.3g})",
        ),
        Check(
            "90 % of the state's variance in at most 6 components",
            all(n <= 6 for n in sizes),
            listed(sizes),
        ),
        Check(
            "a fixed point with Q < 1e-8",
            all(n >= 1 for n in of("fixed points")),
            f"{listed(of('fixed points'))} found, smallest Q "
            f"{listed(of('smallest Q'))}",
        ),
        Check(
            "a real eigenvalue in (0.9, 1) there",
            all(0.9 < b < 1.0 for b in slow),
            listed(slow),
        ),
        Check(
            "a flat update function there: u(3) is below 1.3 times u(1.5) in size",
            all(r < 1.3 for r in flat),
            listed(flat),
        ),
    )


def mechanisms_found(results: CaseResults) -> Sequence[Table]:
    """Which of the paper's four mechanisms each meta-seed has, with its number."""

    def row(name: str, measure: str, says: str, found: Callable[[float], bool]):
        values = results.values("GRU", measure)
        cells = [f"{v:.3g}: {'found' if found(v) else 'not found'}" for v in values]
        return [name, f"{measure} {says}", *cells]

    count = len(results.measured["GRU"])
    rows = [
        row("momentum", MOMENTUM, "in (0.9, 1)", lambda v: 0.9 < v < 1.0),
        row("gradient clipping", CLIPPING, "below 1.3", lambda v: v < 1.3),
        row("learning-rate schedule", SCHEDULE, "above 2", lambda v: v > 2.0),
        row("learning-rate adaptation", ADAPTATION, "below 0.5", lambda v: v < 0.5),
    ]
    columns = ["mechanism", "sign", *(f"meta-seed {i}" for i in range(count))]
    return [Table("mechanisms per meta-seed", columns, rows)]


def panels(results: CaseResults) -> Sequence[Panel]:
    """Loss curves, and the sign of each mechanism with the level that finds it."""
    curve = "loss / first loss"

    def sign(name: str, measure: str, *marks: float) -> Panel:
        return Panel(
            f"{name}: {measure}",
            dots={"GRU": results.values("GRU", measure)},
            marks=marks,
        )

    return [
        Panel(curve, curves={v: results.curves(v, curve) for v in results.measured}),
        sign("momentum", MOMENTUM, 0.9, 1.0),
        sign("clipping", CLIPPING, 1.3),
        sign("schedule", SCHEDULE, 2.0),
        sign("adaptation", ADAPTATION, 0.5),
    ]


MECHANISMS = CaseStudy(
    name="mechanisms",
    claim="A GRU meta-trained on quadratics learns momentum, gradient clipping and a "
    "low-dimensional state; it beats gradient descent, not heavy-ball momentum with "
    "the constants of the theory.",
    source="Maheswaranathan et al., 2020, arXiv 2011.02159",
    rule="for every meta-seed: mean loss over 201 steps below 0.6 times that of "
    "gradient descent at its best rate; 90 % of the state's variance in at most 6 "
    "components; a fixed point with Q < 1e-8, with a real eigenvalue in (0.9, 1) and "
    "u(3) below 1.3 times u(1.5) in size",
    minutes=10.0,
    settings=SETTINGS,
    variants={
        "GRU": gru,
        "gradient descent": gradient_descent,
        "heavy ball": heavy_ball,
    },
    judge=judge,
    tables=mechanisms_found,
    panels=panels,
)

MECHANISMS_AT_SIZE = dataclasses.replace(
    MECHANISMS, size="paper", settings=AT_SIZE, minutes=20.0
)
