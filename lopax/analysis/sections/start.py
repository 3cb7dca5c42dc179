"""The section on what was learned on top of a hand-made optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopax.analysis import drawing
from lopax.analysis.explanation import Drawing, Grid, Section, Subject, listed
from lopax.analysis.learned_part import Told, Worth, against_start, worth_of_parts

RUN = 1_000
LENGTHS = (100, 10_000)
SHARES = (-0.8, -0.4, 0.0, 0.4)
"""Of the momentum that gradients confirm: with large batches, and with small ones."""
MEANT = {
    "size": "sizes of the steps",
    "horizon": "the power of the run's length",
    "shape": "powers of a matrix's sides",
    "kernels": "the size of convolutions' kernels",
    "schedule": "the schedule's shape",
    "momenta": "the mixture of gradient and momenta",
    "signal": "listening to how gradients agree with momenta",
    "history": "listening to the history of the loss",
    "outputs": "bringing outputs to steps of one length",
    "blend": "mixing in the plain direction",
    "network": "the network of each tensor",
    "elements": "the network of each element",
}


def learned(subject: Subject) -> Section:
    """What was learned."""
    s, optimizer = subject, subject.optimizer
    names = _names(optimizer)
    usual = against_start(optimizer, s.theta, RUN)
    found = worth_of_parts(
        optimizer, s.theta, s.task, num_steps=s.num_steps, seeds=s.seeds
    )
    by_share = {x: against_start(optimizer, s.theta, RUN, x) for x in SHARES}
    by_length = {n: against_start(optimizer, s.theta, n) for n in LENGTHS}
    by_hand = _sum(usual.hand_made, names)
    text = [
        "At theta = 0 this rule is a hand-made optimizer: Muon, with Adam for vectors "
        f"and embeddings. Over a run of {RUN:,} steps the learned sizes are, in units "
        f"of the hand-made ones, {_sizes(usual)}. A direction is "
        f"{_sum(usual.weights[0], names)} at the start and "
        f"{_sum(usual.weights[-1], names)} at the end; by hand it is {by_hand}.",
        f"Half-way a matrix's steps are {_half_way(by_length)} times the hand-made "
        f"ones in runs of {_keys(by_length, '{:,}')} steps, and {_half_way(by_share)} "
        f"times where the next gradient confirms {_keys(by_share, '{:+.0%}')} of the "
        "momentum (the more below zero, the less noise there is).",
        _trained(subject, found),
    ]
    return Section(
        "What was learned on top of the hand-made optimizer",
        text,
        [
            Drawing(
                "Sizes against the hand-made ones",
                drawing.curves(
                    usual.fractions,
                    usual.sizes,
                    "fraction of the run done",
                    "× the hand-made size",
                ),
                f"A run of {RUN:,} steps in which gradients are mostly noise.",
            ),
            Drawing(
                "What a direction is made of",
                drawing.curves(
                    usual.fractions,
                    dict(zip(names, usual.weights.T, strict=True)),
                    "fraction of the run done",
                    "weight",
                ),
                f"By hand: {by_hand}, all the way.",
            ),
        ],
        Grid(
            ("without", "what that is", "mean loss", "final loss"),
            [
                (
                    name,
                    meaning,
                    f"× {found.mean_ratio[i]:.2f}",
                    f"× {found.loss_ratio[i]:.2f}",
                )
                for i, (name, meaning) in enumerate(_parts(found))
            ],
            ("what that is",),
        ),
        f"Without what was learned its mean loss on {s.task_name} is "
        f"{found.mean_ratio[0]:.2f} times, its final loss {found.loss_ratio[0]:.2f} "
        "times as high.",
    )


def _parts(found: Worth) -> list[tuple[str, str]]:
    all_of_it = ("all of theta", "what is left is the hand-made optimizer")
    return [all_of_it, *((name, MEANT[name]) for name in found.parts)]


def _trained(subject: Subject, found: Worth) -> str:
    what = (
        f"Trained on {subject.task_name} ({len(subject.seeds)} seeds, "
        f"{subject.num_steps:,} steps) its final loss is {found.final:.2g}, without "
        f"what was learned {found.loss_ratio[0]:.2f} times that; the mean over the run "
        f"is {found.mean_ratio[0]:.2f} times as high. "
    )
    if not found.parts:
        return f"{what}All of theta is zero: nothing was learned."
    return (
        f"{what}The table has the same without one part of theta after the other. "
        "Where losses are next to nothing, ratios of final losses exaggerate; and one "
        "task says little: what was learned pays over many, or not at all."
    )


def _sizes(found: Told) -> str:
    def of(role: str) -> str:
        sizes = found.sizes[role]
        middle = sizes[len(sizes) // 2]
        plural = {"matrix": "matrices", "vector": "vectors"}.get(role, "embeddings")
        return f"{sizes[0]:.2f}, {middle:.2f} and {sizes[-1]:.2f} for {plural}"

    ends = listed([of(role) for role in found.sizes])
    return f"at the start, half-way and at the end, {ends}"


def _names(optimizer: Any) -> list[str]:
    return ["gradient", *(f"momentum {d:g}" for d in optimizer.config.decays)]


def _sum(weights: np.ndarray, names: Sequence[str]) -> str:
    """ "0.3 gradient + 1.1 momentum 0.95"."""
    terms = [f"{w:.2f} × {name}" for w, name in zip(weights, names, strict=True)]
    return " + ".join(terms).replace("+ -", "− ")


def _half_way(cases: Mapping[Any, Told]) -> str:
    middle = [x.sizes["matrix"][len(x.fractions) // 2] for x in cases.values()]
    return listed([f"{size:.2f}" for size in middle])


def _keys(cases: Mapping[Any, Told], form: str) -> str:
    return listed([form.format(k) for k in cases])
