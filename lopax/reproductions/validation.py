"""R9: is a rule that is judged on data it never trains on a better regulariser?

Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, "Tasks, stability,
architecture, and compute: Training more effective learned optimizers, and using them
to train themselves" (2020, arXiv 2009.11243). One flat rule is meta-trained twice on a
task with 100 training images: once by the loss of its training batches, once by that
of batches of images kept from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lopax import meta
from lopax.reproductions import few_digits
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import LARGER

ARCHITECTURE = "adafac_mlp"
SETTINGS: Mapping[str, Any] = {
    "images": 100,
    "task": {"hidden": (32,), "batch_size": 64},
    "rule": {"step_mult": 3e-3},
    "steps": 100,
    "particles": 8,
    "sigma": 0.01,
    "outer_steps": 200,
    "learning_rate": 3e-3,
    "clip_norm": 1.0,
    "seeds": 16,
    "test_every": 20,
}
AT_SIZE: Mapping[str, Any] = {
    **SETTINGS,
    "task": {"registered": "mnist_conv", **LARGER.settings, "norm": "layer"},
    "steps": 160,
    "particles": 4,
    "outer_steps": 100,
    "seeds": 8,
    "test_every": 80,
}
TRAIN, VALID = "outer = train", "outer = valid"


def recipe(
    settings: Mapping[str, Any], split: str, steps: int, seed: int
) -> meta.RunConfig:
    """The meta-training run; its task is that of `few_digits`, not `tasks`."""
    s = settings
    return meta.RunConfig(
        name="validation",
        architecture=ARCHITECTURE,
        settings=dict(s["rule"]),
        seed=seed,
        estimator=meta.EstimatorConfig(
            name="full_es",
            particles=s["particles"],
            sigma=s["sigma"],
            objective_split=split,
            horizon_low=s["steps"],
            horizon_high=s["steps"],
            chunk=s["particles"],
        ),
        outer=meta.OuterConfig(
            optimizer="adam",
            learning_rate=s["learning_rate"],
            weight_decay=0.0,
            clip_norm=s["clip_norm"],
        ),
        phases=(meta.PhaseConfig(outer_steps=max(10, steps // 10 * 10)),),
        eval_every=0,
    )


def meta_train(split: str, case: Case) -> Measured:
    """Meta-trains by the losses of `split` and measures the rule."""
    s = case.settings
    run = recipe(s, split, case.steps(s["outer_steps"]), case.seed)
    return few_digits.meta_train(run, case)


def judge(results: CaseResults) -> Sequence[Check]:
    checks = []
    found = results.measured[VALID][0].values
    for measure in (m for m in found if m.startswith(("test loss", "weight norm"))):
        valid, train = (results.values(v, measure) for v in (VALID, TRAIN))
        means = results.mean(VALID, measure), results.mean(TRAIN, measure)
        better = sum(a < b for a, b in zip(valid, train, strict=True))
        checks.append(
            Check(
                f"{measure} steps: lower for {VALID}",
                means[0] < means[1],
                f"{means[0]:.3f} against {means[1]:.3f}, lower with {better} of "
                f"{len(valid)} meta-seeds",
            )
        )
    return checks


VALIDATION = CaseStudy(
    name="validation",
    claim="A learned optimizer that is meta-trained by the loss on held-out data "
    "regularises: it overfits less than one meta-trained by the training loss.",
    source="Metz et al., 2020, arXiv 2009.11243",
    rule="on 100 images, the rule meta-trained by held-out losses has the lower test "
    "loss at its training horizon and at three times that, and the smaller weight "
    "norm (means over meta-seeds, paired over 16 inner seeds)",
    minutes=10.0,
    settings=SETTINGS,
    variants={
        TRAIN: functools.partial(meta_train, "train"),
        VALID: functools.partial(meta_train, "extra_valid"),
        "adam 0.01": functools.partial(few_digits.adam, 0.01),
        "adam 0.03": functools.partial(few_digits.adam, 0.03),
    },
    judge=judge,
)

VALIDATION_AT_SIZE = dataclasses.replace(
    VALIDATION,
    size="paper",
    rule="two convolutions with layer norm, 100 images of MNIST of 16x16 pixels: the "
    "rule meta-trained by held-out losses has the lower test loss at its training "
    "horizon of 160 steps and at 480, and the smaller weight norm (means over "
    "meta-seeds, paired over 8 inner seeds)",
    minutes=15.0,
    settings=AT_SIZE,
)
