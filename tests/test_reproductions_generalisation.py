"""The reproductions about generalisation, in seconds: tasks, variants, verdicts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lopax import meta
from lopax.reproductions import Case, CaseResults, Measured, flatness, validation
from lopax.reproductions.few_digits import few_digits

SMALL: dict[str, Any] = {
    "task": {"hidden": (3,), "batch_size": 8},
    "steps": 8,
    "outer_steps": 20,
    "particles": 2,
    "seeds": 2,
    "test_every": 4,
}


def case(study: Any, folder: Any, **changes: Any) -> Case:
    settings = {**study.settings, **SMALL, **changes}
    return Case(0, 1.0, settings, folder, lambda text: None)


def test_few_digits_trains_on_few_and_keeps_the_rest_apart():
    task = few_digits(100, hidden=(3,))
    splits: Any = task.source.splits  # type: ignore[attr-defined]
    sizes = {k: int(s.sizes[0]) for k, s in splits.items()}
    assert sizes["train"] == 100
    assert {k: len(s.inputs) for k, s in splits.items()} == sizes
    assert sum(sizes.values()) == 1797
    images = np.concatenate([np.asarray(s.inputs) for s in splits.values()])
    labels = np.concatenate([np.asarray(s.labels) for s in splits.values()])
    # The same images as ever, each once: only the borders between splits moved.
    whole: Any = few_digits(1150, hidden=(3,)).source
    parts = [np.asarray(s.inputs) for s in whole.splits.values()]
    now, then = (np.sort(x.sum(axis=1)) for x in (images, np.concatenate(parts)))
    np.testing.assert_array_equal(now, then)
    assert len(labels) == len(images)


def test_test_losses_are_those_of_the_whole_test_set():
    task = few_digits(100, hidden=(3,))
    params, state = task.init(jax.random.key(0))
    a, b = (task.evaluate(params, state, jax.random.key(k), "test") for k in (0, 1))
    assert float(a) == float(b)
    a, b = (task.evaluate(params, state, jax.random.key(k), "valid") for k in (0, 1))
    assert float(a) != float(b)
    found = task.metrics(params, state, jax.random.key(0), "test")
    norm = np.sqrt(sum(np.sum(np.square(p)) for p in jax.tree.leaves(params)))
    np.testing.assert_allclose(found["weight_norm"], norm, rtol=1e-5)
    assert 0.0 <= float(found["accuracy"]) <= 1.0


MEASURES = {
    f"{name} at {t}"
    for name in ("test loss", "test accuracy", "weight norm")
    for t in (8, 24)
}


@pytest.mark.shortened
def test_a_rule_judged_by_held_out_losses_is_trained_once_and_measured(tmp_path):
    study = validation.VALIDATION
    here = case(study, tmp_path / "valid")
    found = study.variants[validation.VALID](here)
    assert set(found.values) == MEASURES
    assert all(np.isfinite(list(found.values.values())))
    assert len(found.curves["test loss"]) == 7
    assert study.variants["adam 0.01"](here).values != found.values
    # Weights are there: nothing is trained again.
    log = tmp_path / "valid" / "run" / "metrics.jsonl"
    before = log.read_text()
    assert study.variants[validation.VALID](here) == found
    assert log.read_text() == before
    assert [line["step"] for line in meta.read_log(log)] == [10, 20]


def test_the_variants_differ_in_what_they_are_about():
    settings = validation.VALIDATION.settings
    runs = [validation.recipe(settings, x, 200, 0) for x in ("train", "extra_valid")]
    assert [r.estimator.objective_split for r in runs] == ["train", "extra_valid"]
    settings = flatness.FLATNESS.settings
    for measure in ("largest", "trace"):
        run = flatness.recipe(settings, measure, 500, 0)
        chosen = settings["penalties"][measure]
        assert run.estimator.flatness == measure
        assert run.estimator.flatness_weight == chosen["weight"]
        assert run.estimator.flatness_iterations == chosen["iterations"]
    assert flatness.recipe(settings, "none", 500, 0).estimator.flatness == "none"


@pytest.mark.shortened
def test_a_rule_is_meta_trained_with_a_penalty(tmp_path):
    study = flatness.FLATNESS
    found = study.variants[flatness.LARGEST](
        case(
            study,
            tmp_path,
            truncation=4,
            outer_steps=10,
            rule={"lstm": 2, "layers": 1},
            penalties={"largest": {"weight": 1.0, "iterations": 1}},
        )
    )
    assert set(found.values) == MEASURES
    assert all(np.isfinite(list(found.values.values())))


def results(level: Any) -> CaseResults:
    """Three meta-seeds; `level(variant, measure)` is their value."""
    names = {
        "validation": list(validation.VALIDATION.variants),
        "flatness": list(flatness.FLATNESS.variants),
    }
    measures = [
        f"{name} at {t}"
        for name in ("test loss", "test accuracy", "weight norm")
        for t in (100, 300)
    ]
    return CaseResults(
        measured={
            v: [Measured({m: level(v, m) for m in measures})] * 3
            for v in {v for vs in names.values() for v in vs}
        }
    )


@pytest.mark.parametrize(
    ("module", "good", "better", "worse"),
    [(validation, validation.VALID, 0.8, 1.0), (flatness, flatness.LARGEST, 0.9, 0.8)],
)
def test_verdicts(module, good, better, worse):
    def verdict(level: Any) -> list[bool]:
        return [c.passed for c in module.judge(results(level))]

    assert all(verdict(lambda v, m: better if v == good else worse))
    assert not any(verdict(lambda v, m: worse if v == good else better))
    equal = verdict(lambda v, m: 0.5)
    assert not all(equal)
    nan = verdict(lambda v, m: np.nan if v == good else worse)
    assert not any(nan)
    # A loss at one of the two times is enough to fail.
    late = verdict(
        lambda v, m: (better if v == good else worse) if m.endswith("100") else 0.5
    )
    assert not all(late)


def test_a_small_gain_is_not_enough_for_the_flatness_rule():
    checks = flatness.judge(
        results(lambda v, m: 0.84 if v == flatness.LARGEST else 0.80)
    )
    assert [c.passed for c in checks] == [True, True, True, False]
