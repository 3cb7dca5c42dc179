"""R3: does a penalty on the inner loss's curvature make a learned optimizer generalise?

Yang, Chen, Zhu, He, Tao, Liang and Wang, "Learning to Generalize Provably in Learning
to Optimize" (2023, arXiv 2302.11085). The classic coordinate-wise recurrent rule is
meta-trained by truncated back-propagation to train a network on 150 images, with and
without the penalty; what counts is the accuracy on test images.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lopax import meta
from lopax.reproductions import few_digits
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check

ARCHITECTURE = "l2o_lstm"
SETTINGS: Mapping[str, Any] = {
    "images": 150,
    "task": {"hidden": (20,), "batch_size": 64},
    "rule": {"lstm": 8, "layers": 1, "log_range": 10.0, "step_mult": 0.1},
    "steps": 100,
    "truncation": 20,
    "particles": 4,
    "outer_steps": 500,
    "learning_rate": 1e-2,
    "penalties": {
        "largest": {"weight": 1e-2, "iterations": 4},
        "trace": {"weight": 1e-4, "iterations": 4},
    },
    "seeds": 16,
    "test_every": 20,
    "adam": 1e-2,
}
NONE, LARGEST, TRACE = "none", "largest eigenvalue", "trace"
T, THRICE = SETTINGS["steps"], 3 * SETTINGS["steps"]


def recipe(
    settings: Mapping[str, Any], measure: str, steps: int, seed: int
) -> meta.RunConfig:
    """The meta-training run; its task is that of `few_digits`, not `tasks`."""
    s = settings
    penalty = {}
    if measure != "none":
        chosen = s["penalties"][measure]
        penalty = {f"flatness_{k}": v for k, v in chosen.items()}
    return meta.RunConfig(
        name="flatness",
        architecture=ARCHITECTURE,
        settings=dict(s["rule"]),
        seed=seed,
        estimator=meta.EstimatorConfig(
            name="truncated_backprop",
            particles=s["particles"],
            truncation=s["truncation"],
            # A reset takes the place of a step: windows stay aligned with the runs.
            horizon_low=s["steps"] - 1,
            horizon_high=s["steps"] - 1,
            staggered=False,
            chunk=None,
            flatness=measure,
            **penalty,
        ),
        outer=meta.OuterConfig(
            optimizer="adam",
            learning_rate=s["learning_rate"],
            weight_decay=0.0,
            # Not in the paper: without it the first gradients, of norm 80, leave one
            # of three rules with the penalty at a constant output for good.
            clip_norm=1.0,
        ),
        phases=(meta.PhaseConfig(outer_steps=max(10, steps // 10 * 10)),),
        eval_every=0,
    )


def meta_train(measure: str, case: Case) -> Measured:
    """Meta-trains with one penalty, or none, and measures the rule."""
    s = case.settings
    run = recipe(s, measure, case.steps(s["outer_steps"]), case.seed)
    return few_digits.meta_train(run, case)


def judge(results: CaseResults) -> Sequence[Check]:
    checks = []
    for time, margin in ((T, 0.01), (THRICE, 0.05)):
        flat, plain = (
            results.values(v, f"test accuracy at {time}") for v in (LARGEST, NONE)
        )
        gains = [a - b for a, b in zip(flat, plain, strict=True)]
        mean = sum(gains) / len(gains)
        found = ", ".join(
            f"{a:.3f} - {b:.3f}" for a, b in zip(flat, plain, strict=True)
        )
        checks += [
            Check(
                f"{LARGEST}: test accuracy at {time} steps not below that without, for "
                "every meta-seed",
                all(g >= 0.0 for g in gains),
                found,
            ),
            Check(
                f"{LARGEST}: mean gain at {time} steps at least {margin:g}",
                mean >= margin,
                f"{mean:+.3f}",
            ),
        ]
    return checks


FLATNESS = CaseStudy(
    name="flatness",
    claim="A penalty on the largest eigenvalue of the inner loss's Hessian makes a "
    "learned optimizer end at solutions that generalise better.",
    source="Yang et al., 2023, arXiv 2302.11085",
    rule="on 150 images, test accuracy with the penalty is not below that without for "
    "any meta-seed, at the training horizon (mean gain 1 point) and at three times it "
    "(mean gain 5 points)",
    minutes=10.0,
    settings=SETTINGS,
    variants={
        NONE: functools.partial(meta_train, "none"),
        LARGEST: functools.partial(meta_train, "largest"),
        TRACE: functools.partial(meta_train, "trace"),
        "adam": functools.partial(few_digits.adam, SETTINGS["adam"]),
    },
    judge=judge,
)
