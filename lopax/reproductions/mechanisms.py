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
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax import analysis, meta
from lopax.architectures import architecture
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check, Panel, Table
from lopax.tasks import RotatedQuadratics
from lopax.theta import load_theta

SETTINGS: Mapping[str, Any] = {
    "units": 32,
    "dimension": 5,
    "low": 1e-3,
    "high": 1.0,
    "unroll": 201,
    "outer_steps": 800,
    "particles": 64,
    "learning_rate": 8e-3,
    "halved_every": 1000,
    "eps": 0.1,
    "clip_value": 5.0,
    "clip_norm": 1.0,
    "test_problems": 256,
    "test_seed": 12345,
    "starts": 64,
    "tolerance": 1e-8,
    "grid_alpha": [0.3, 0.7, 1.0, 1.4],
    "grid_beta": [0.5, 0.7, 0.8, 0.9, 0.95],
    "measures": 2,  # of this file; a new number measures anew
}

AT_SIZE: Mapping[str, Any] = {**SETTINGS, "units": 64, "outer_steps": 2001}
"""The paper's published notebook."""

MOMENTUM = "largest real eigenvalue < 1"
CLIPPING = "size of u(3) / u(1.5)"
SCHEDULE = "first rate / last rate"
ADAPTATION = "rate at |g| = 1 / at 0"


def _family(settings: Mapping[str, Any]) -> RotatedQuadratics:
    return RotatedQuadratics(**{k: settings[k] for k in ("dimension", "low", "high")})


def visit(view: analysis.RecurrentView, s: Mapping[str, Any]) -> analysis.Visited:
    """The rule on the test problems, which are the same for everyone."""
    return analysis.visit(
        view,
        _family(s),
        jax.random.key(s["test_seed"]),
        problems=s["test_problems"],
        steps=s["unroll"],
    )


def _objective(losses: Any) -> float:
    """Mean over steps and problems of loss / first loss."""
    return float(np.mean(np.asarray(losses, np.float64)))


def _mean_curve(visited: analysis.Visited) -> list[float]:
    return np.asarray(visited.losses, np.float64).mean(axis=0).tolist()


def recipe(settings: Mapping[str, Any], outer_steps: int, seed: int) -> meta.RunConfig:
    """The meta-training run; its tasks are the quadratics, not `tasks`."""
    s = settings
    return meta.RunConfig(
        name="mechanisms",
        architecture="l2o_gru",
        settings={"units": s["units"]},
        seed=seed,
        estimator=meta.EstimatorConfig(
            name="full_gradient",
            particles=s["particles"],
            horizon_low=s["unroll"],
            horizon_high=s["unroll"],
            chunk=None,
        ),
        outer=meta.OuterConfig(
            optimizer="adam",
            learning_rate=s["learning_rate"],
            schedule="halving",
            decay_steps=s["halved_every"],
            eps=s["eps"],
            clip_value=s["clip_value"],
            # Beyond the paper's clipping: one problem in 64 whose run is chaotic has
            # gradients of 1e10 and more, which elementwise clipping turns into a step
            # in a random direction; theta does not come back from a few of those.
            clip_norm=s["clip_norm"],
        ),
        phases=(meta.PhaseConfig(outer_steps=max(10, outer_steps // 10 * 10)),),
        eval_every=0,
    )


def trained(case: Case) -> Path:
    """The weights of the case's GRU, meta-trained (or continued) if need be."""
    folder = case.folder / "run"
    weights = folder / "weights.safetensors"
    if not weights.exists():
        run = recipe(case.settings, case.steps(case.settings["outer_steps"]), case.seed)
        meta.train(
            run,
            (_family(case.settings),),
            folder,
            resume=(folder / "config.json").exists(),
        )
    return weights


def gru(case: Case) -> Measured:
    """Meta-trains the GRU and analyses it."""
    s = case.settings
    theta = load_theta(trained(case))
    view = analysis.recurrent_view(architecture("l2o_gru", units=s["units"]), theta)
    visited = visit(view, s)
    states = np.asarray(visited.states).reshape(-1, s["units"])
    pca = analysis.state_pca(states)
    rng = np.random.default_rng(case.seed)
    starts = states[rng.choice(len(states), s["starts"], replace=False)]
    points = analysis.find_fixed_points(view, starts, tolerance=s["tolerance"])
    values = {
        "objective": _objective(visited.losses),
        "components for 90 %": pca.dimensions(0.9),
        "fixed points": len(points.states),
        "smallest Q": min(points.speeds, default=np.nan),
        MOMENTUM: np.nan,
        CLIPPING: np.nan,
        SCHEDULE: _schedule(view, s["unroll"]),
        ADAPTATION: np.nan,
    }
    if len(points.states):
        point = points.states[0]
        slow = analysis.modes(analysis.linearise(view, point)).real_betas(-1.0, 1.0)
        values[MOMENTUM] = max(slow, default=np.nan)
        values[CLIPPING] = analysis.saturation(view, point)
        values[ADAPTATION] = _adaptation(view, point)
    case.say(
        f"  objective {values['objective']:.3f}, {len(points.states)} fixed points"
    )
    return Measured(values, {"loss / first loss": _mean_curve(visited)})


def _schedule(view: analysis.RecurrentView, steps: int) -> float:
    """How far the rate falls while no gradient comes: mean rate of the first tenth of
    the run over that of the last tenth."""
    rates = analysis.implicit_schedule(view, steps).rates
    tenth = max(1, len(rates) // 10)
    first, last = rates[:tenth].mean(), rates[-tenth:].mean()
    return float(first / last) if last else np.inf


def _adaptation(view: analysis.RecurrentView, point: Any) -> float:
    """The rate where the state rests under a gradient of size one against that where
    it rests without, both signs averaged; NaN if it does not come to rest."""
    found = analysis.adaptation_curve(view, np.asarray([-1.0, 0.0, 1.0]), start=point)
    if not found.rests().all() or not found.rates[1]:
        return np.nan
    return float(0.5 * (found.rates[0] + found.rates[2]) / found.rates[1])


def gradient_descent(case: Case) -> Measured:
    """The best constant rate in theory, no momentum."""
    s = case.settings
    rate = analysis.gradient_descent_optimum(s["low"], s["high"])
    visited = visit(analysis.momentum_view(rate, 0.0), s)
    return Measured(
        {"objective": _objective(visited.losses)},
        {"loss / first loss": _mean_curve(visited)},
    )


def heavy_ball(case: Case) -> Measured:
    """Momentum with the constants of the theory, and the best of a small grid."""
    s = case.settings
    best = analysis.heavy_ball_optimum(s["low"], s["high"])
    visited = visit(analysis.momentum_view(*best), s)
    pairs = itertools.product(s["grid_alpha"], s["grid_beta"])
    grid = jax.vmap(lambda pair: visit(analysis.momentum_view(*pair), s).losses)(
        jnp.asarray(list(pairs))
    )
    return Measured(
        {
            "objective": _objective(visited.losses),
            "best of a grid": min(map(_objective, grid)),
        },
        {"loss / first loss": _mean_curve(visited)},
    )


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
