"""R6: what STAR's nominal term and preconditioner do for stability.

Harrison, Metz and Sohl-Dickstein, "A Closer Look at Learned Optimization: Stability,
Robustness, and Inductive Biases" (2022, arXiv 2209.11208).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lopax import meta
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import LARGER, RecipeStudy, Results, Trial

_DIGITS = meta.TasksConfig(datasets=("digits",), augment="none")


def _recipe(
    name: str,
    tasks: meta.TasksConfig = _DIGITS,
    outer_steps: int = 150,
    weight_decay: float = 0.0,
    **settings: Any,
) -> meta.RunConfig:
    return meta.RunConfig(
        name=f"star_{name}",
        architecture="star",
        settings={"hidden": 16, **settings},
        tasks=(tasks,),
        estimator=meta.EstimatorConfig(
            name="full_es", particles=8, horizon_low=50, horizon_high=50, chunk=8
        ),
        outer=meta.OuterConfig(learning_rate=3e-3, weight_decay=weight_decay),
        phases=(meta.PhaseConfig(outer_steps=outer_steps),),
        eval_every=0,
    )


_NO_NOMINAL = {"nominal": 0.0, "nominal_controller": False}
_DEEPER = "deeper net, T = 500"


def _variants(*where: Any) -> dict[str, meta.RunConfig]:
    """On which tasks, for how many outer steps."""
    return {
        "black box": _recipe("black_box", *where, precondition=False, **_NO_NOMINAL),
        "preconditioned": _recipe("preconditioned", *where, **_NO_NOMINAL),
        "nominal": _recipe("nominal", *where, precondition=False),
        "star": _recipe("star", *where, weight_decay=0.5),
    }


def judge(results: Results) -> Sequence[Check]:
    star, plain = (results.mean_meta_loss(v) for v in ("star", "black box"))
    worst = {
        v: results.over_seeds(_DEEPER, v, "worst") for v in ("star", "preconditioned")
    }
    return (
        Check(
            "meta-loss below half the black box's",
            star < 0.5 * plain,
            f"{star:.3f} against {plain:.3f}",
        ),
        Check(
            "worst last loss on the deeper net below a tenth of the preconditioned "
            "black box's",
            worst["star"] < 0.1 * worst["preconditioned"],
            f"{worst['star']:.3g} against {worst['preconditioned']:.3g}",
        ),
    )


STAR = RecipeStudy(
    name="star",
    claim="A nominal term, a preconditioner and weight decay on theta make a learned "
    "rule meta-train faster and stay stable on other networks and longer runs.",
    source="Harrison et al., 2022, arXiv 2209.11208",
    rule="after 150 outer steps STAR's meta-loss is below half its black-box twin's; "
    "on a wider and deeper network its worst seed's last loss is below a tenth of the "
    "preconditioned-only variant's",
    minutes=15.0,
    variants=_variants(),
    tests={
        _DEEPER: Trial(
            task="digits_mlp_32",
            settings={"hidden": (128, 128, 128)},
            num_steps=500,
            last=50,
        ),
        "T = 2000": Trial(task="digits_mlp_32", num_steps=2_000, last=50),
    },
    judge=judge,
)

STAR_AT_SIZE = dataclasses.replace(
    STAR,
    size="paper",
    rule="two convolutions on MNIST of 16x16 pixels: after 100 outer steps STAR's "
    "meta-loss is below half its black-box twin's; on four wider convolutions, 500 "
    "steps, its worst seed's last loss is below a tenth of the preconditioned-only "
    "variant's",
    minutes=25.0,
    variants=_variants(LARGER, 100),
    tests={
        _DEEPER: Trial(
            task="mnist_conv",
            settings={
                **LARGER.settings,
                "channels": (32, 32, 32, 32),
                "strides": (2, 2, 1, 1),
            },
            num_steps=500,
            last=50,
        ),
    },
)
