"""Does a network per tensor help where tensors differ in scale?

Metz et al., "Tasks, stability, architecture, and compute: Training more effective
learned optimizers, and using them to train themselves" (2020, arXiv 2009.11243).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lopax import meta
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import LARGER, RecipeStudy, Results, Trial

_DIGITS = meta.TasksConfig(datasets=("digits",))


def _recipe(
    architecture: str,
    tasks: meta.TasksConfig = _DIGITS,
    horizon: int = 50,
    outer_steps: int = 300,
) -> meta.RunConfig:
    scaled = dataclasses.replace(
        tasks, augment="tensor", augment_low=1e-2, augment_high=1e2
    )
    return meta.RunConfig(
        name=f"hierarchy_{architecture}",
        architecture=architecture,
        tasks=(scaled,),
        estimator=meta.EstimatorConfig(
            name="full_es",
            particles=8,
            horizon_low=horizon,
            horizon_high=horizon,
            chunk=8,
        ),
        outer=meta.OuterConfig(
            optimizer="adam", learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0
        ),
        phases=(meta.PhaseConfig(outer_steps=outer_steps),),
        eval_every=0,
    )


def judge(results: Results) -> Sequence[Check]:
    deep, flat = (results.mean_meta_loss(v) for v in ("rnn_mlp", "flat MLP"))
    return (
        Check(
            "meta-loss below the flat MLP rule's after equal outer steps",
            deep < flat,
            f"{deep:.3f} against {flat:.3f}",
        ),
    )


HIERARCHY = RecipeStudy(
    name="hierarchy",
    claim="A rule with a recurrent network per tensor copes with tensors of different "
    "scale better than a rule that sees elements only.",
    source="Metz et al., 2020, arXiv 2009.11243",
    rule="meta-trained on tasks whose tensors are each rescaled by a factor in "
    "[1e-2, 1e2], rnn_mlp ends at a lower meta-loss than adafac_mlp",
    minutes=15.0,
    variants={"rnn_mlp": _recipe("rnn_mlp"), "flat MLP": _recipe("adafac_mlp")},
    tests={},
    judge=judge,
    meta_window=50,
)

HIERARCHY_AT_SIZE = dataclasses.replace(
    HIERARCHY,
    size="paper",
    rule="two convolutions on MNIST of 16x16 pixels, runs of 100 steps, tensors each "
    "rescaled by a factor in [1e-2, 1e2]: after 100 outer steps rnn_mlp ends at a "
    "lower meta-loss than adafac_mlp; runs of 500 steps without rescaling are reported",
    minutes=10.0,
    variants={
        "rnn_mlp": _recipe("rnn_mlp", LARGER, 100, 100),
        "flat MLP": _recipe("adafac_mlp", LARGER, 100, 100),
    },
    tests={
        "not rescaled, T = 500": Trial(
            task="mnist_conv", settings=LARGER.settings, num_steps=500, last=50
        )
    },
)
