"""The section on what a per-element network looks at."""

from __future__ import annotations

import numpy as np

from lopax.analysis import drawing
from lopax.analysis.elements import element_net
from lopax.analysis.explanation import Drawing, Grid, Section, Subject, listed
from lopax.analysis.importance import Importance, feature_importance


def features(subject: Subject) -> Section:
    """What it looks at."""
    s = subject
    found = feature_importance(
        s.optimizer, s.theta, s.task, num_steps=s.num_steps, seeds=s.seeds
    )
    net = element_net(s.optimizer)
    order = np.argsort(-found.changed)
    weights = net.weight_sizes(s.theta)
    leaders = _names(found, [i for i in order[:3] if found.changed[i] > 0.05])
    mean = found.mean_ratio
    worst = [_loss(found, i) for i in np.argsort(-mean)[:3] if mean[i] > 1.02]
    better = [_loss(found, i) for i in np.argsort(mean)[:3] if mean[i] < 0.98]
    spare = [
        g.meaning
        for g, c, r in zip(found.groups, found.changed, mean, strict=True)
        if c < 0.05 and abs(r - 1) < 0.02
    ]
    text = [
        f"A network of {net.num_inputs} inputs per element decides on the direction. "
        "Each group of inputs was replaced by its mean over a run on "
        f"{s.task_name}. Change: how much of the update, by root mean square, is then "
        "another one, at the same moments of the same run. Turn: one minus the cosine "
        "with the intact update. Mean and final loss: training loss, over the whole "
        "run and over its last tenth, of runs without the group against runs with "
        f"everything ({len(s.seeds)} seeds, {s.num_steps:,} steps). The final loss "
        f"with everything is {found.final:.2g}; where that is next to nothing, ratios "
        "of final losses exaggerate.",
        f"The update depends most on {leaders}.",
        f"Taking one group away costs most for {listed(worst)}."
        if worst
        else "No single group is missed much in training: what one says, others say "
        "as well.",
    ]
    if spare:
        text.append(f"It could do without {listed(spare)}, one at a time.")
    if better:
        text.append(f"On this task it does better without {listed(better)}.")
    names = [found.groups[i].name for i in order]
    rows = [
        (
            found.groups[i].name,
            found.groups[i].meaning,
            str(found.groups[i].channels),
            f"{weights[i]:.2f}",
            f"{100 * found.changed[i]:.0f} %",
            f"{abs(found.turned[i]):.3f}",
            _ratio(float(found.mean_ratio[i])),
            _ratio(float(found.loss_ratio[i])),
        )
        for i in order
    ]
    return Section(
        "What it looks at",
        text,
        [
            Drawing(
                "Change of the update",
                drawing.bars(names, 100 * found.changed[order], "%"),
                "Update without the group against the intact one.",
            ),
            Drawing(
                "Mean loss",
                drawing.bars(
                    names,
                    found.mean_ratio[order],
                    "× the mean loss with it",
                    reference=1.0,
                ),
                "Runs trained without the group against runs with it.",
            ),
        ],
        Grid(
            (
                *("input", "meaning", "channels", "weights"),
                *("change", "turn", "mean loss", "final loss"),
            ),
            rows,
            ("meaning",),
        ),
        f"It looks most at {leaders}.",
    )


def _names(found: Importance, which: list[int]) -> str:
    if not which:
        return "no single group of inputs"
    return listed(
        [f"{found.groups[i].meaning} ({100 * found.changed[i]:.0f} %)" for i in which]
    )


def _loss(found: Importance, i: int) -> str:
    return (
        f"{found.groups[i].meaning} (mean loss × {_ratio(float(found.mean_ratio[i]))})"
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "diverged"
