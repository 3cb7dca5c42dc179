"""Sections on a coordinate-wise recurrent rule as a dynamical system."""

from __future__ import annotations

import jax
import numpy as np

from lopax.analysis import drawing
from lopax.analysis.adaptation import adaptation_curve
from lopax.analysis.explanation import Drawing, Grid, Section, Subject
from lopax.analysis.fixed_points import FixedPoints, find_fixed_points
from lopax.analysis.linearise import linearise, modes
from lopax.analysis.pca import state_pca
from lopax.analysis.recurrent import RecurrentView, Visited, visit
from lopax.analysis.schedule import implicit_schedule
from lopax.analysis.slices import knee, saturation, share_beyond, update_function
from lopax.analysis.views import recurrent_view

PROBLEMS, STARTS = 64, 64


def dynamics(subject: Subject) -> list[Section]:
    """All sections; the runs they look into are made once."""
    view = recurrent_view(subject.optimizer, subject.theta)
    visited = visit(
        view,
        subject.family,
        jax.random.key(subject.seeds[0]),
        problems=PROBLEMS,
        steps=subject.num_steps,
    )
    flat = np.asarray(visited.states).reshape(-1, view.initial.size)
    chosen = np.random.default_rng(0).choice(len(flat), STARTS, replace=False)
    points = find_fixed_points(view, flat[chosen])
    rest = points.states[0] if len(points.states) else flat.mean(axis=0)
    return [
        _state_space(visited, points),
        _momentum(view, points),
        _clipping(view, rest, visited, bool(len(points.states))),
        _schedule(view, subject.num_steps),
        _adaptation(view, visited),
    ]


def _state_space(visited: Visited, points: FixedPoints) -> Section:
    states = np.asarray(visited.states, np.float64)
    pca = state_pca(states)
    count = len(pca.explained)
    ninety = pca.dimensions(0.9)
    text = [
        f"Of {count} numbers of state per parameter, {ninety} directions hold 90 % of "
        f"the variance met in {states.shape[0]} training runs of {states.shape[1]} "
        "steps.",
        _points_text(points),
    ]
    drawings = [
        Drawing(
            "Variance",
            drawing.curves(
                np.arange(1, count + 1),
                {"": np.cumsum(pca.explained)},
                "components",
                "share of the variance",
            ),
            "Cumulative, by principal component.",
        )
    ]
    if count >= 2:
        paths = pca.project(states[:16, :, 0])
        marks = pca.project(points.states)
        drawings.append(
            Drawing(
                "State space",
                drawing.plane(paths, marks, ("component 1", "component 2")),
                "The states of one parameter in 16 runs; crosses are resting points.",
            )
        )
    return Section(
        "What it remembers",
        text,
        drawings,
        headline=f"Its memory is small: {ninety} of {count} dimensions hold 90 % of "
        "the variance.",
    )


def _points_text(points: FixedPoints) -> str:
    n = len(points.states)
    if not n:
        return (
            "No resting point was found (Q < 1e-8): without gradients its state goes "
            "on moving, and what follows was taken around the mean state."
        )
    return (
        f"Without gradients its state can rest at {n} point{'s' if n > 1 else ''} (the "
        f"slowest has Q = {points.speeds[0]:.1e})."
    )


def _momentum(view: RecurrentView, points: FixedPoints) -> Section:
    title = "Its momentum"
    if not len(points.states):
        return Section(title, ["No resting point, so nothing to linearise around."])
    found = modes(linearise(view, points.states[0]))
    total = float(np.sum(found.weights))
    slow = found.betas[np.abs(found.betas) < 1.0]
    slowest = slow[np.argmax(np.abs(slow))] if len(slow) else found.betas[0]
    rows = [
        (
            _complex(b),
            _complex(a),
            f"{1 / max(1e-9, 1 - abs(b)):.1f}" if abs(b) < 1 else "grows",
            f"{100 * w / max(total, 1e-300):.0f} %",
        )
        for b, a, w in list(zip(found.betas, found.alphas, found.weights, strict=True))[
            :8
        ]
    ]
    main_b, main_a = found.betas[0], found.alphas[0]
    sentence = (
        f"Its strongest momentum term has decay {_complex(main_b)} and rate "
        f"{_complex(main_a)}."
    )
    return Section(
        title,
        [
            "Near a resting point the rule is linear, a sum of momentum terms: decay "
            "beta and rate alpha of each come from an eigenvalue of its Jacobian. "
            "Weight: share of the step a lasting gradient causes. Memory: steps over "
            "which a gradient is remembered.",
            f"{sentence} The slowest stable mode has size {abs(slowest):.3f}: it "
            f"remembers about {1 / max(1e-9, 1 - abs(slowest)):.0f} steps.",
        ],
        [
            Drawing(
                "Eigenvalues",
                drawing.complex_plane(found.betas),
                "Of the linearised state; the circle has radius one.",
            ),
            Drawing(
                "Memory",
                drawing.curves(
                    np.arange(60),
                    {"": found.response(60)},
                    "steps after the gradient",
                    "step",
                    zero=True,
                ),
                "The linearised answer to a single gradient of one.",
            ),
        ],
        Grid(("decay beta", "rate alpha", "memory", "weight"), rows),
        sentence,
    )


def _complex(z: complex) -> str:
    if abs(z.imag) < 1e-6 * max(abs(z.real), 1e-12):
        return f"{z.real:.3g}"
    return f"{z.real:.3g} {'+' if z.imag > 0 else '−'} {abs(z.imag):.3g}i"


def _clipping(
    view: RecurrentView, rest: np.ndarray, visited: Visited, resting: bool
) -> Section:
    grads = np.asarray(visited.grads)
    wide = 2.0 * max(1.0, float(np.quantile(np.abs(grads), 0.99)))
    grid = np.linspace(-wide, wide, 201)
    here = update_function(view, rest[None], grid)
    states = np.asarray(visited.states)
    count = states.shape[1]
    some = states[:8, [count // 10, count // 2, count - 1], 0].reshape(-1, len(rest))
    others = update_function(view, some, grid)
    ratio = saturation(view, rest)
    bend = knee(here)
    beyond = share_beyond(grads, bend)
    where = "at a resting point" if resting else "at the mean state"
    clips = (
        f"The curve bends at |g| = {bend:.2g}; {100 * beyond:.1f} % of the gradients "
        "met in training lie beyond."
        if np.isfinite(bend)
        else "The curve does not bend within the gradients met in training."
    )
    flat = (
        "it clips"
        if ratio < 1.3
        else "it damps large gradients"
        if ratio < 1.8
        else "it is nearly linear there"
    )
    return Section(
        "Its clipping",
        [
            f"The step as a function of the gradient, {where}: slope at zero (the "
            f"effective learning rate) {here.rates[0]:.3g}. {clips}",
            f"A gradient of 3 instead of 1.5 gives {ratio:.2f} times the step: {flat}.",
        ],
        [
            Drawing(
                "Update function",
                drawing.bundle(
                    grid, others.updates, "gradient", "step", here.updates[0]
                ),
                f"Strong: {where}. Thin: in states met in training.",
            )
        ],
        headline=f"Doubling a gradient from 1.5 to 3 gives {ratio:.2f} times the "
        f"step: {flat}.",
    )


def _schedule(view: RecurrentView, steps: int) -> Section:
    found = implicit_schedule(view, steps)
    top = int(np.argmax(found.rates))
    first, last = found.rates[0], found.rates[-1]
    if np.ptp(found.rates) < 0.05 * abs(last):
        said = f"The rate stays at {last:.3g}: time alone drives nothing."
    else:
        said = (
            f"The rate starts at {first:.3g}, is largest ({found.rates[top]:.3g}) at "
            f"step {top} and comes to {last:.3g}."
        )
    return Section(
        "Its schedule",
        [
            "Without any gradient, the state moves from its start to rest. The slope "
            "of the update function along this path is a learning-rate schedule that "
            "only the count of steps drives.",
            said,
        ],
        [
            Drawing(
                "Implicit schedule",
                drawing.curves(
                    np.arange(steps), {"": found.rates}, "step", "learning rate"
                ),
                "Effective learning rate along the path without gradients.",
            )
        ],
        headline=f"Left alone: {said[0].lower()}{said[1:]}",
    )


def _adaptation(view: RecurrentView, visited: Visited) -> Section:
    size = float(np.quantile(np.abs(np.asarray(visited.grads)), 0.95))
    grid = np.linspace(-2.0 * size, 2.0 * size, 41)
    found = adaptation_curve(view, grid)
    middle, edge = found.rates[20], 0.5 * (found.rates[0] + found.rates[-1])
    if not found.rests().any():
        verdict = "It comes to rest under none of them, so there is no curve to read."
    elif edge < 0.5 * middle:
        verdict = (
            f"Under large gradients the rate falls from {middle:.3g} to {edge:.3g}: "
            "it adapts to their size, as RMSProp does."
        )
    else:
        verdict = (
            f"The rate goes from {middle:.3g} under none to {edge:.3g} under large "
            "ones: it does not adapt as RMSProp does."
        )
    return Section(
        "Its adaptation",
        [
            "Under a constant gradient the state rests elsewhere; the steps there, "
            f"over {len(grid)} gradients, trace the curve below. {verdict}",
            f"It came to rest under {int(found.rests().sum())} of {len(grid)}.",
        ],
        [
            Drawing(
                "Steps at rest",
                drawing.curves(
                    grid, {"": found.updates}, "constant gradient", "step", zero=True
                ),
                "The step made for ever under a constant gradient.",
            ),
            Drawing(
                "Learning rate at rest",
                drawing.curves(
                    grid, {"": found.rates}, "constant gradient", "learning rate"
                ),
                "Slope of the update function there.",
            ),
        ],
        headline=verdict,
    )
