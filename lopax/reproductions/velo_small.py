"""R5: a small VeLO against a grid of Adam, inside and outside its training horizon.

Metz et al., "VeLO: Training Versatile Learned Optimizers by Scaling Up" (2022, arXiv
2211.09760).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lopax import meta
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import RecipeStudy, Results, Trial

_VELO = {"lstm": 64, "bank": 16, "bank_mult": 100.0}
_BOUNDED = {**_VELO, "norm_factor": "clipped", "norm_limit": 0.1}
_OUTER = meta.OuterConfig(optimizer="adam", learning_rate=3e-3, weight_decay=0.0)
_LONG = dataclasses.replace(_OUTER, schedule="cosine", final_fraction=0.05)


def _recipe(
    name: str,
    steps: int,
    low: int,
    high: int,
    augment: str,
    outer: meta.OuterConfig = _OUTER,
    settings: Mapping[str, Any] = _VELO,
) -> meta.RunConfig:
    return meta.RunConfig(
        name=f"velo_small_{name}",
        architecture="velo",
        settings=dict(settings),
        tasks=(
            meta.TasksConfig(
                datasets=("digits",),
                augment=augment,
                augment_low=1e-2,
                augment_high=1e2,
            ),
        ),
        estimator=meta.EstimatorConfig(
            name="full_es", particles=8, horizon_low=low, horizon_high=high, chunk=8
        ),
        outer=outer,
        phases=(meta.PhaseConfig(outer_steps=steps),),
        eval_every=0,
    )


def judge(results: Results) -> Sequence[Check]:
    velo = results.over_seeds("T = 50", "fixed horizon", "mean")
    adam = results.over_seeds("T = 50", "adam", "mean")
    mixed = results.over_seeds("T = 200", "mixed horizons", "last")
    right = results.over_seeds("T = 200", "mixed horizons", "accuracy")
    fixed = results.over_seeds("T = 200", "fixed horizon", "last")
    return (
        Check(
            "at the training horizon, mean loss below the best Adam's",
            velo < adam,
            f"{velo:.3f} against {adam:.3f}",
        ),
        Check(
            "mixed horizons: stable at T = 200 (last loss < 0.15, accuracy > 0.94)",
            mixed < 0.15 and right > 0.94,
            f"{mixed:.3f}, {right:.3f}",
        ),
        Check(
            "fixed horizon: not stable at T = 200 (last loss > 1)",
            not fixed <= 1.0,
            f"{fixed:.3g}",
        ),
    )


VELO_SMALL = RecipeStudy(
    name="velo_small",
    claim="A small VeLO beats a grid of Adam at its training horizon; lengths that "
    "vary and rescaled tasks make it stable beyond the short one.",
    source="Metz et al., 2022, arXiv 2211.09760",
    rule="mean loss over 50 steps below the best of four Adam learning rates; with "
    "log-uniform lengths and augmentation, at 200 steps last loss < 0.15 and accuracy "
    "> 0.94, where the fixed-horizon rule's last loss is > 1",
    minutes=35.0,
    variants={
        "fixed horizon": _recipe("fixed", 200, 50, 50, "none"),
        "mixed horizons": _recipe("mixed", 2500, 20, 160, "global", _LONG),
    },
    tests={
        "T = 50": Trial(task="digits_mlp_32", num_steps=50),
        "T = 200": Trial(task="digits_mlp_32", num_steps=200),
    },
    baselines={"adam": (1e-3, 3e-3, 1e-2, 3e-2)},
    judge=judge,
)


def judge_far_beyond(results: Results) -> Sequence[Check]:
    at_50 = results.over_seeds("T = 50", "bounded", "mean")
    adam = results.over_seeds("T = 50", "adam", "mean")
    at_200 = results.over_seeds("T = 200", "bounded", "last")
    right = results.over_seeds("T = 200", "bounded", "accuracy")
    worst = results.over_seeds("T = 1,000", "bounded", "worst")
    deeper = results.over_seeds("64-64-64, T = 200", "bounded", "worst")
    published = results.over_seeds("T = 1,000", "as published", "worst")
    return (
        Check(
            "bounded: at T = 50, mean loss below the best Adam's",
            at_50 < adam,
            f"{at_50:.3f} against {adam:.3f}",
        ),
        Check(
            "bounded: at T = 200 last loss < 0.15, accuracy > 0.94",
            at_200 < 0.15 and right > 0.94,
            f"{at_200:.3f}, {right:.3f}",
        ),
        Check(
            "bounded: every run of 1,000 steps stable (worst last loss < 0.15)",
            worst < 0.15,
            f"{worst:.3g}",
        ),
        Check(
            "bounded: every run on a wider and deeper network stable (< 0.15)",
            deeper < 0.15,
            f"{deeper:.3g}",
        ),
        Check(
            "as published: not stable at 1,000 steps (worst last loss > 1)",
            not published <= 1.0,
            f"{published:.3g}",
        ),
    )


_BEYOND = {"hidden": (64, 64, 64)}
VELO_AT_SIZE = dataclasses.replace(
    VELO_SMALL,
    size="paper",
    claim="A VeLO whose norm factor is bounded from the start of meta-training stays "
    "stable far beyond its horizons; as published it does not.",
    rule="meta-trained on horizons of 20 to 160 with the norm factor at most 0.1: mean "
    "loss over 50 steps below the best of four Adam learning rates; at 200 steps last "
    "loss < 0.15 and accuracy > 0.94; at 1,000 steps, and on a 64-64-64 network, the "
    "worst last loss < 0.15; the published form's at 1,000 steps > 1",
    minutes=60.0,
    variants={
        "bounded": _recipe("bounded", 2500, 20, 160, "global", _LONG, _BOUNDED),
        "as published": _recipe("mixed", 2500, 20, 160, "global", _LONG),
    },
    tests={
        **VELO_SMALL.tests,
        "T = 1,000": Trial(task="digits_mlp_32", num_steps=1000, last=50),
        "64-64-64, T = 200": Trial(
            task="digits_mlp_32", settings=_BEYOND, num_steps=200
        ),
    },
    judge=judge_far_beyond,
)
