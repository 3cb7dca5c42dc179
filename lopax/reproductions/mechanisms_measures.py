"""How the reproduction `mechanisms` trains its GRU and what it measures of it and of
hand-made rules."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax import analysis, meta
from lopax.architectures import architecture
from lopax.reproductions.cases import Case, Measured
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
