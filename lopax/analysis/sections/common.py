"""Sections that every architecture has: where it goes, how far, and what rescaling
does."""

from __future__ import annotations

import numpy as np

from lopax.analysis import drawing
from lopax.analysis.directions import REFERENCES, Directions, compare_directions
from lopax.analysis.explanation import Drawing, Grid, Section, Subject, listed
from lopax.analysis.responses import (
    GradientResponse,
    Invariances,
    gradient_response,
    invariances,
)

ADAM = REFERENCES.index("Adam")


def directions(subject: Subject) -> Section:
    """Where it goes, beside hand-made optimizers."""
    s = subject
    found = compare_directions(
        s.optimizer, s.theta, s.task, num_steps=s.num_steps, seed=s.seeds[0]
    )
    sizes = np.asarray([max(1, int(np.prod(x))) for x in found.shapes], np.float64)
    means = found.mean()
    overall = _weighted(means, sizes)
    order = np.argsort(-np.nan_to_num(overall, nan=-2.0))
    best = [f"{REFERENCES[i]} ({overall[i]:.2f})" for i in order[:3]]
    moved = found.moved
    headline = (
        f"Its steps point most nearly where {REFERENCES[order[0]]} would go (mean "
        f"cosine {overall[order[0]]:.2f}), then {best[1]} and {best[2]}."
    )
    decay = overall[REFERENCES.index("weight decay")]
    text = [
        f"The rule trained {s.task_name} for {s.num_steps:,} steps. At each step "
        "hand-made optimizers were fed the same gradients, and the cosine of the angle "
        "between their step and the rule's was taken tensor by tensor: 1 is the same "
        "direction, 0 has nothing to do with it. The table shows means after the first "
        "tenth; averages weigh tensors by their size.",
        f"Nearest: {listed(best)}. {_shrinking(decay, found.inward[ADAM])}",
        f"A step moves the parameters by {_percent(moved[: max(1, len(moved) // 20)])} "
        f"of their size (as one vector) at first and "
        f"{_percent(moved[-max(1, len(moved) // 20) :])} at the end. Training loss "
        f"went from {found.losses[0]:.3g} to "
        f"{found.losses[-max(1, len(moved) // 20) :].mean():.3g}.",
    ]
    return Section(
        "Where it goes",
        text,
        _direction_drawings(found, sizes, moved),
        Grid(
            ("tensor", "shape", *REFERENCES),
            [
                (
                    name,
                    " × ".join(map(str, shape)) or "scalar",
                    *("–" if np.isnan(c) else f"{c:.2f}" for c in row),
                )
                for name, shape, row in zip(
                    found.names, found.shapes, means, strict=True
                )
            ],
        ),
        headline,
    )


def _weighted(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[R] averages over tensors where the reference is defined."""
    there = ~np.isnan(means)
    weight = there * sizes[:, None]
    total = np.where(there, means, 0.0) * weight
    return np.divide(
        total.sum(0),
        weight.sum(0),
        out=np.full(means.shape[1], np.nan),
        where=weight.sum(0) > 0,
    )


def _shrinking(cosine: float, adam: float) -> str:
    if cosine > 0.05:
        what = "It also pulls parameters towards zero"
    elif cosine < -0.05:
        what = "It also pushes parameters away from zero"
    else:
        what = "It hardly pulls parameters towards zero"
    return (
        f"{what} (cosine {cosine:.2f} with a step straight to zero; Adam's steps on "
        f"the same gradients have {adam:.2f})."
    )


def _percent(values: np.ndarray) -> str:
    return f"{100 * float(np.mean(values)):.2g} %"


def _direction_drawings(
    found: Directions, sizes: np.ndarray, moved: np.ndarray
) -> list[Drawing]:
    steps = np.arange(1, len(found.losses) + 1)
    window = max(1, len(steps) // 30)
    over_time = np.stack([_weighted(c, sizes) for c in found.cosines])

    def smooth(y: np.ndarray) -> np.ndarray:
        kernel = np.ones(window)
        return np.convolve(y, kernel, "same") / np.convolve(
            np.ones(len(y)), kernel, "same"
        )

    lines = {
        name: smooth(over_time[:, i])
        for i, name in enumerate(REFERENCES)
        if not np.isnan(over_time[:, i]).all()
    }
    return [
        Drawing(
            "Direction",
            drawing.curves(steps, lines, "step", "cosine", zero=True),
            "Cosine with the step each hand-made optimizer would make, mean over "
            "tensors by size.",
        ),
        Drawing(
            "Size of a step",
            drawing.curves(
                steps, {"": moved}, "step", "|update| / |parameters|", log="y"
            ),
            "How far a step moves all parameters, relative to their size.",
        ),
    ]


def response(subject: Subject) -> Section:
    """What it does with one gradient."""
    s = subject
    found = gradient_response(
        s.optimizer, s.theta, s.task, num_steps=s.num_steps, seed=s.seeds[0]
    )
    ratio = found.flattening()
    change = found.change()
    falls = np.interp(5.0, found.gradients, change)
    verdict = _verdict(ratio)
    sense = "against" if falls < 0 else "along"
    text = [
        f"Half-way through the run, the gradient of single elements of "
        f"{found.tensor} was changed, everything else kept, and the element's step "
        "watched. Gradients are in units of the tensor's root mean square, steps in "
        "those of the tensor's update.",
        f"The step moves {sense} the gradient; a gradient three times as large (30 "
        f"instead of 10) moves it {ratio:.2g} times as far: {verdict}.",
    ]
    return Section(
        "What it does with one gradient",
        text,
        [
            Drawing(
                "Update function",
                _response_figure(found),
                "Step by gradient for single elements (thin) and their mean, each "
                "minus its step at zero gradient.",
            )
        ],
        headline=f"One gradient, three times as large, moves its element {ratio:.2g} "
        f"times as far: {verdict}.",
    )


def _verdict(ratio: float) -> str:
    if ratio > 2.4:
        return "nearly linear, large gradients count in full"
    if ratio > 1.3:
        return "large gradients are damped, not cut"
    if ratio > 0.7:
        return "large gradients are clipped"
    return "the larger a gradient, the less it is believed"


def _response_figure(found: GradientResponse):
    zero = int(np.argmin(np.abs(found.gradients)))
    lines = found.updates - found.updates[:, [zero]]
    return drawing.bundle(
        found.gradients,
        lines,
        "gradient / RMS of the tensor's gradients",
        "step / RMS of the tensor's steps",
        found.change(),
    )


def rescaling(subject: Subject) -> Section:
    """What it takes no notice of."""
    s = subject
    found = invariances(
        s.optimizer, s.theta, s.task, num_steps=s.num_steps, seed=s.seeds[0]
    )
    said = [_scaling(found, name) for name in found.sizes]
    columns = ("multiplied by", *(f"{n}: size" for n in found.sizes))
    columns += tuple(f"{n}: cosine" for n in found.sizes)
    rows = [
        (
            f"{factor:g}",
            *(f"{found.sizes[n][i]:.3g}" for n in found.sizes),
            *(f"{found.cosines[n][i]:.2f}" for n in found.sizes),
        )
        for i, factor in enumerate(found.factors)
    ]
    return Section(
        "What rescaling does",
        [
            "The first steps of the run were replayed with all gradients, all "
            "parameters or all losses multiplied by a constant. Size: root mean square "
            "of the last step against the original one's; cosine: whether it still "
            "points the same way.",
            " ".join(said),
        ],
        grid=Grid(columns, rows),
        headline=said[0] + " " + said[1],
    )


def _scaling(found: Invariances, name: str) -> str:
    k, cosines = found.exponent(name), found.cosines[name]
    sizes = found.sizes[name]
    plural = "the loss" if name == "loss" else f"all {name}"
    if np.allclose(sizes, 1.0, atol=1e-6) and np.all(cosines > 1 - 1e-6):
        return f"Rescaling {plural} changes nothing."
    turned = f"; the direction turns (cosine down to {cosines.min():.2f})"
    turned = turned if cosines.min() < 0.9 else ""
    if abs(k) < 0.1:
        what = f"hardly changes the size of a step (power {k:.2f})"
    elif abs(k - 1) < 0.1:
        what = f"scales the step alike (power {k:.2f})"
    else:
        what = f"changes the step's size with the power {k:.2f}"
    return f"Rescaling {plural} {what}{turned}."
