"""Does a network per tensor help where tensors differ in scale?

Metz et al., "Tasks, stability, architecture, and compute: Training more effective
learned optimizers, and using them to train themselves" (2020, arXiv 2009.11243).
"""

from __future__ import annotations

from collections.abc import Sequence

from lopax import meta
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import RecipeStudy, Results


def _recipe(architecture: str) -> meta.RunConfig:
    return meta.RunConfig(
        name=f"hierarchy_{architecture}",
        architecture=architecture,
        tasks=(
            meta.TasksConfig(
                datasets=("digits",),
                augment="tensor",
                augment_low=1e-2,
                augment_high=1e2,
            ),
        ),
        estimator=meta.EstimatorConfig(
            name="full_es", particles=8, horizon_low=50, horizon_high=50, chunk=8
        ),
        outer=meta.OuterConfig(
            optimizer="adam", learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0
        ),
        phases=(meta.PhaseConfig(outer_steps=300),),
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
