"""R3 again, with ten times the penalty's weight, on meta-seeds of its own.

Among the penalties of `flatness` at size this one was ahead on its first three
meta-seeds. A choice made by results is no verdict on those: here are five others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.flatness import (
    AT_SIZE,
    FLATNESS,
    NONE,
    STRONGER,
    THRICE,
    T,
    meta_train,
    panels,
)
from lopax.reproductions.outcome import Check, standard_error

SETTINGS: Mapping[str, Any] = {**AT_SIZE, "first_meta_seed": 5}
TRAINED = 0.5
"""Test accuracy above which a rule has learned to train at all."""


def fresh(chosen: str, case: Case) -> Measured:
    """Meta-seeds count from the study's first one."""
    seed = case.settings["first_meta_seed"] + case.seed
    return meta_train(chosen, case._replace(seed=seed))


def judge(results: CaseResults) -> Sequence[Check]:
    def values(variant: str, measure: str) -> np.ndarray:
        return np.asarray(results.values(variant, measure))

    reached = f"test accuracy at {T}"
    both = (values(NONE, reached) > TRAINED) & (values(STRONGER, reached) > TRAINED)
    checks = []
    for measure, sign in (("test accuracy", 1.0), ("test loss", -1.0)):
        for time in (T, THRICE):
            name = f"{measure} at {time}"
            gains = sign * (values(STRONGER, name) - values(NONE, name))[both]
            count = len(gains)
            mean = float(gains.mean()) if count else np.nan
            error = standard_error(gains)
            better = int((gains > 0.0).sum())
            wins = mean > 2.0 * error if sign > 0.0 else better == count > 0
            how = "by more than two standard errors" if sign > 0.0 else "in every pair"
            checks.append(
                Check(
                    f"{name} steps better {how}",
                    bool(wins),
                    f"by {mean:.3f} with a standard error of {error:.3f}, in {better} "
                    f"of {count} pairs ({len(both) - count} more where one rule of the "
                    "two did not learn)",
                )
            )
    return checks


FLATNESS_STRONGER = CaseStudy(
    name="flatness_stronger",
    claim="The claim of flatness, with ten times the weight and in the second half of "
    "each run only.",
    source=FLATNESS.source,
    rule="five meta-seeds that no choice was made on, paired where both rules come "
    "above a test accuracy of 0.5: accuracy is higher by more than two standard errors "
    "at the training horizon and at three times it, and test loss lower in every pair",
    minutes=6.0,
    meta_seeds=5,
    settings=SETTINGS,
    variants={
        NONE: functools.partial(fresh, "none"),
        STRONGER: functools.partial(fresh, STRONGER),
    },
    judge=judge,
    panels=panels,
)
