"""The reproductions about generalisation, in seconds: tasks, variants, verdicts."""

from __future__ import annotations

from typing import Any

import jax
import jax.flatten_util
import numpy as np
import pytest

from lopax import meta
from lopax.reproductions import (
    Case,
    CaseResults,
    Measured,
    flatness,
    flatness_stronger,
    validation,
)
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
    for name in ("test loss", "test accuracy", "weight norm", "curvature")
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


def test_smoothing_is_of_training_losses_and_curvature_of_none():
    plain, smooth = (few_digits(100, s, hidden=(3,)) for s in (0.0, 0.3))
    key = jax.random.key(0)
    params, state = plain.init(key)
    batch = plain.batch(key)
    losses = [float(t.loss(params, state, key, batch)[0]) for t in (plain, smooth)]
    outputs, _ = plain.network.apply(params, state, batch[0])
    log_p = np.asarray(jax.nn.log_softmax(outputs), np.float64)
    rows, labels = np.arange(len(log_p)), np.asarray(batch[1])
    target = np.full(log_p.shape, 0.3 / 10)
    target[rows, labels] += 0.7
    np.testing.assert_allclose(losses[0], -log_p[rows, labels].mean(), rtol=1e-5)
    np.testing.assert_allclose(losses[1], -(target * log_p).sum(1).mean(), rtol=1e-5)
    tested = [t.evaluate(params, state, key, "test") for t in (plain, smooth)]
    assert float(tested[0]) == float(tested[1])
    # Of the loss on all training images: the Hessian's largest eigenvalue in size.
    arrays = plain.source.splits["train"]  # type: ignore[attr-defined]
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def whole(x):
        images = arrays.inputs.astype(np.float32) / 65535.0
        outputs, _ = plain.network.apply(unravel(x), state, images)
        return plain.head.loss(outputs, images, arrays.labels)

    eigenvalues = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(whole))(flat)))
    found = jax.jit(lambda p: plain.metrics(p, state, key, "test"))(params)["curvature"]
    assert 0.8 * eigenvalues[-1] < float(found) < 1.01 * eigenvalues[-1]


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
    settings = flatness.AT_SIZE
    run = flatness.recipe(settings, flatness.SECOND_HALF, 500, 0)
    assert run.estimator.flatness_start == 0.5
    assert run.estimator.penalty.measure == "largest"


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


@pytest.mark.shortened
def test_a_rule_is_meta_trained_on_smoothed_labels(tmp_path):
    study = flatness.FLATNESS_AT_SIZE
    here = case(
        study,
        tmp_path,
        truncation=4,
        outer_steps=10,
        rule={"lstm": 2, "layers": 1},
        smoothing=0.2,
    )
    found = study.variants[flatness.SMOOTH](here)
    assert set(found.values) == MEASURES
    assert all(np.isfinite(list(found.values.values())))


def at_size(gain: float, noise: float) -> CaseResults:
    """Five meta-seeds; the penalty changes accuracy by `gain`, loss by minus that."""
    draws = np.random.default_rng(0).normal(size=5)
    measured = {}
    for variant in flatness.FLATNESS_AT_SIZE.variants:
        change = (gain + noise * draws) * (variant in flatness.TWINS)
        measured[variant] = [
            Measured(
                {
                    f"{name} at {t}": 0.5 + (-d if name == "test loss" else d)
                    for name in flatness.MEASURED
                    for t in (100, 300)
                }
            )
            for d in change
        ]
    return CaseResults(measured=measured)


def test_the_rule_of_flatness_at_size():
    def verdict(gain: float, noise: float) -> list[bool]:
        return [c.passed for c in flatness.judge_at_size(at_size(gain, noise))]

    assert verdict(0.02, 0.001) == [True] * 4
    assert verdict(-0.02, 0.001) == [False] * 4
    assert verdict(0.02, 0.5) == [False] * 4
    assert verdict(np.nan, 0.0) == [False] * 4
    (table,) = flatness.differences(at_size(0.02, 0.0))
    assert len(table.rows) == 2 * len(flatness.TWINS)
    assert table.rows[0][1] == "+0.020 +- 0.000, up in 5 of 5"


def test_the_rule_of_flatness_stronger():
    def verdict(gains: list[float], plain: float = 0.8) -> list[bool]:
        def made(accuracy: float, loss: float) -> Measured:
            values = {f"test accuracy at {t}": accuracy for t in (100, 300)}
            return Measured(
                values | {f"test loss at {t}": loss for t in (100, 300)}, {}
            )

        measured = {
            flatness.NONE: [made(plain, 1.0) for _ in gains],
            flatness.STRONGER: [made(plain + g, 1.0 - g) for g in gains],
        }
        checks = flatness_stronger.judge(CaseResults(measured=measured))
        return [c.passed for c in checks]

    assert verdict([0.02, 0.03, 0.02, 0.025]) == [True] * 4
    assert verdict([0.02, 0.03, -0.01, 0.3]) == [False] * 4
    # A twin that never learned proves nothing, and neither does a single pair.
    assert verdict([0.7, 0.7, 0.7], plain=0.1) == [False] * 4
    assert verdict([0.02]) == [False, False, True, True]
    assert verdict([0.02, np.nan, 0.03]) == [True] * 4  # left out, and told
