"""R5: a small VeLO against a grid of Adam, inside and outside its training horizon.

Metz et al., "VeLO: Training Versatile Learned Optimizers by Scaling Up" (2022, arXiv
2211.09760).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lopax import meta
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import RecipeStudy, Results, Trial

_VELO = {"lstm": 64, "bank": 16, "bank_mult": 100.0}
_OUTER = meta.OuterConfig(optimizer="adam", learning_rate=3e-3, weight_decay=0.0)
_LONG = dataclasses.replace(_OUTER, schedule="cosine", final_fraction=0.05)


def _recipe(
    name: str,
    steps: int,
    low: int,
    high: int,
    augment: str,
    outer: meta.OuterConfig = _OUTER,
) -> meta.RunConfig:
    return meta.RunConfig(
        name=f"velo_small_{name}",
        architecture="velo",
        settings=_VELO,
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
