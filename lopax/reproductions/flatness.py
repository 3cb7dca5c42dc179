"""R3: does a penalty on the inner loss's curvature make a learned optimizer generalise?

Yang, Chen, Zhu, He, Tao, Liang and Wang, "Learning to Generalize Provably in Learning
to Optimize" (2023, arXiv 2302.11085). The classic coordinate-wise recurrent rule is
meta-trained by truncated back-propagation to train a network on 150 images, with and
without the penalty; what counts is the accuracy on test images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopax import meta
from lopax.reproductions import few_digits
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check, Panel, Table, standard_error

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
    settings: Mapping[str, Any], chosen: str, steps: int, seed: int
) -> meta.RunConfig:
    """The meta-training run; its task is that of `few_digits`, not `tasks`. `chosen` is
    a key of settings["penalties"], the measure if that says no other, or "none"."""
    s = settings
    penalty: dict[str, Any] = {}
    if chosen != "none":
        strength = dict(s["penalties"][chosen])
        penalty["flatness"] = strength.pop("measure", chosen)
        penalty |= {f"flatness_{k}": v for k, v in strength.items()}
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


def meta_train(chosen: str, case: Case) -> Measured:
    """Meta-trains with one penalty, or none, and measures the rule."""
    s = case.settings
    run = recipe(s, chosen, case.steps(s["outer_steps"]), case.seed)
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

SECOND_HALF, STRONGER = "second half", "ten times, second half"
AT_SIZE: Mapping[str, Any] = {
    **SETTINGS,
    "outer_steps": 200,
    "penalties": {
        "largest": {"weight": 1e-2, "iterations": 4},
        SECOND_HALF: {
            "measure": "largest",
            "weight": 1e-2,
            "iterations": 4,
            "start": 0.5,
        },
        STRONGER: {"measure": "largest", "weight": 1e-1, "iterations": 4, "start": 0.5},
    },
    "smoothing": 0.1,
}
SMOOTH, SMOOTH_SECOND_HALF = "none, smoothed", "second half, smoothed"
TWINS = {
    LARGEST: NONE,
    SECOND_HALF: NONE,
    STRONGER: NONE,
    SMOOTH_SECOND_HALF: SMOOTH,
}
"""Variant with a penalty -> the same without."""
MEASURED = ("test accuracy", "test loss", "weight norm", "curvature")


def meta_train_smoothed(penalty: str, case: Case) -> Measured:
    """As `meta_train`, with smoothed labels in inner training and meta-loss."""
    s = case.settings
    task = {**s["task"], "smoothing": s["smoothing"]}
    smoothed = case._replace(settings={**s, "task": task})
    return meta_train(penalty, smoothed)


def paired(results: CaseResults, variant: str, measure: str) -> tuple[float, float]:
    """Mean difference to the variant's twin over meta-seeds, and its standard error."""
    mine, twin = (results.values(v, measure) for v in (variant, TWINS[variant]))
    gains = np.asarray(mine) - np.asarray(twin)
    return float(gains.mean()), standard_error(gains)


def judge_at_size(results: CaseResults) -> Sequence[Check]:
    checks = []
    for measure, sign in (("test accuracy", 1.0), ("test loss", -1.0)):
        for time in (T, THRICE):
            gain, error = paired(results, SECOND_HALF, f"{measure} at {time}")
            checks.append(
                Check(
                    f"penalty in the second half: {measure} at {time} steps better by "
                    "more than two standard errors",
                    sign * gain > 2.0 * error,
                    f"{gain:+.3f} with a standard error of {error:.3f}",
                )
            )
    return checks


def differences(results: CaseResults) -> Sequence[Table]:
    """Every penalty against its twin without, paired over meta-seeds."""
    rows = []
    for variant in TWINS:
        for time in (T, THRICE):
            cells = [_difference(results, variant, f"{m} at {time}") for m in MEASURED]
            rows.append([f"{variant}, {time} steps", *cells])
    title = "with the penalty minus without, mean and standard error over meta-seeds"
    return [Table(title, ["penalty", *MEASURED], rows)]


def _difference(results: CaseResults, variant: str, measure: str) -> str:
    mine, twin = (results.values(v, measure) for v in (variant, TWINS[variant]))
    gain, error = paired(results, variant, measure)
    up = sum(a > b for a, b in zip(mine, twin, strict=True))
    return f"{gain:+.3f} +- {error:.3f}, up in {up} of {len(mine)}"


def panels(results: CaseResults) -> Sequence[Panel]:
    """What the claim is about, and the curvature that should explain it."""
    shown = (f"test accuracy at {T}", f"test accuracy at {THRICE}")
    shown += (f"test loss at {THRICE}", f"curvature at {THRICE}")
    return [
        Panel(m, dots={v: results.values(v, m) for v in results.measured})
        for m in shown
    ]


FLATNESS_AT_SIZE = dataclasses.replace(
    FLATNESS,
    size="paper",
    rule="on 150 images, with the penalty in the second half of each inner run, as the "
    "published code has it by default: test accuracy is higher and test loss lower "
    "than without, at the training horizon and at three times it, each by more than "
    "two standard errors, paired over five meta-seeds",
    minutes=10.0,
    meta_seeds=5,
    settings=AT_SIZE,
    variants={
        NONE: functools.partial(meta_train, "none"),
        SECOND_HALF: functools.partial(meta_train, SECOND_HALF),
        SMOOTH: functools.partial(meta_train_smoothed, "none"),
        SMOOTH_SECOND_HALF: functools.partial(meta_train_smoothed, SECOND_HALF),
        LARGEST: functools.partial(meta_train, "largest"),
        STRONGER: functools.partial(meta_train, STRONGER),
    },
    judge=judge_at_size,
    tables=differences,
    panels=panels,
)
