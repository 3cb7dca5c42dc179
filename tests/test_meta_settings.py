"""Settings of meta-training that would do nothing are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lopax._core.config import config_hash, to_dict
from lopax._core.errors import ConfigError, LopaxError, ResumeMismatch
from lopax.architectures import architecture
from lopax.estimators import ESTIMATORS, Mixture, Regularised
from lopax.meta import (
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    RunConfig,
    TasksConfig,
    build_estimator,
    build_families,
    load_recipe,
    outer,
    read_config,
    save_state,
    train,
)
from lopax.meta.estimator_config import OWN
from lopax.meta.outer_config import HAND_MADE, SCHEDULES
from lopax.meta.outer_config import OWN as OUTER_OWN
from lopax.meta.recipes import list_recipes
from lopax.pretrained.files import read_arrays

GIVEN: dict[str, Any] = {"truncation": 7, "sigma": 0.25, "sign": 1.5}
TASKS = (TasksConfig(datasets=("digits",), settings={"hidden": (4,), "batch_size": 8}),)


@pytest.fixture(scope="module")
def families():
    return build_families(TASKS)


@pytest.mark.parametrize("setting", OWN)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_setting_reaches_the_estimator_or_is_refused(name, setting, families):
    fixed: dict[str, Any] = {"particles": 2, "horizon_low": 3, "horizon_high": 3}
    known = {f.name for f in dataclasses.fields(ESTIMATORS[name])}  # type: ignore[arg-type]
    if setting not in known:
        with pytest.raises(ConfigError) as caught:
            EstimatorConfig(name=name, **fixed, **{setting: GIVEN[setting]})
        message = str(caught.value)
        assert f"EstimatorConfig.{setting} = {GIVEN[setting]}" in message
        assert "leave it out" in message and "\n" not in message
        other = next(n for n in ESTIMATORS if f"{n}," in message or f"{n})" in message)
        EstimatorConfig(name=other, **fixed, **{setting: GIVEN[setting]})
        return
    config = EstimatorConfig(name=name, **fixed, **{setting: GIVEN[setting]})
    rule = architecture("learned_sgd")
    built: Any = build_estimator(config, rule, families, ("*",))
    assert not isinstance(built, (Mixture, Regularised))
    assert getattr(built, setting) == GIVEN[setting]
    plain: Any = build_estimator(
        EstimatorConfig(name=name, **fixed), rule, families, ("*",)
    )
    assert getattr(plain, setting) == OWN[setting]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "pes", "first_order": True},
        {"name": "full_es", "flatness": "trace"},
        {"name": "full_gradient", "flatness_weight": 1.0},
        {"name": "full_gradient", "flatness_iterations": 3},
        {"name": "full_gradient", "flatness_start": 0.5},
        {"recompute": 3},
        {"objective": "last", "recompute": 3},
    ],
)
def test_what_nothing_heeds_is_refused(settings):
    with pytest.raises(ConfigError):
        EstimatorConfig(**settings)


@pytest.mark.parametrize("setting", OUTER_OWN["adamw"])
@pytest.mark.parametrize("optimizer", (*HAND_MADE, "celo", "self"))
def test_a_setting_moves_the_outer_optimizer_or_is_refused(optimizer, setting):
    given: dict[str, Any] = {setting: 0.5}
    if setting not in OUTER_OWN.get(optimizer, {}):
        with pytest.raises(ConfigError, match=rf"{setting} = 0.5.*adamw.*leave it out"):
            OuterConfig(optimizer=optimizer, **given)
        return

    def moved(config: OuterConfig) -> Any:
        rule = outer.build(config, 10, architecture("learned_sgd"))
        params = np.ones(3, np.float32)
        state = rule.init(params)
        for scale in (1.0, -0.3):
            grads = scale * np.asarray([1.0, 1e-3, 0.0], np.float32)
            updates, state = rule.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params)

    plain = moved(OuterConfig(optimizer=optimizer))
    assert not np.array_equal(plain, moved(OuterConfig(optimizer=optimizer, **given)))
    default: dict[str, Any] = {setting: OUTER_OWN[optimizer][setting]}
    stated = OuterConfig(optimizer=optimizer, **default)
    np.testing.assert_array_equal(plain, moved(stated))


def test_no_decay_can_be_said_of_every_outer_optimizer():
    for optimizer in (*HAND_MADE, "celo"):
        OuterConfig(optimizer=optimizer, weight_decay=0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_settings_of_another_schedule_are_refused(schedule):
    wrong = {"constant": ("final_fraction", "decay_steps"), "halving": ()}
    wrong["halving"] = ("final_fraction",)
    for name, value in (("final_fraction", 0.5), ("decay_steps", 3)):
        given: dict[str, Any] = {name: value}
        if name in wrong.get(schedule, ()):
            with pytest.raises(ConfigError, match=rf"{name} = {value}.*{schedule}"):
                OuterConfig(schedule=schedule, **given)
        else:
            OuterConfig(schedule=schedule, **given)


def test_a_phase_with_another_estimator_keeps_what_both_have():
    run = RunConfig(
        estimator=EstimatorConfig(particles=6, truncation=30, sigma=0.2),
        outer=OuterConfig(weight_decay=0.1, b1=0.5),
        phases=(
            PhaseConfig(name="a", estimator={"sigma": 0.3}),
            PhaseConfig(
                name="b",
                estimator={"name": "truncated_backprop", "first_order": True},
                outer={"optimizer": "adam"},
            ),
        ),
    )
    first, second = run.phases
    assert run.estimator_of(first).own == {
        "truncation": 30, "sigma": 0.3, "sign": None,
    }  # fmt: skip
    found = run.estimator_of(second)
    assert (found.own, found.particles) == ({"truncation": 30}, 6)
    assert run.outer_of(second).own == {"b1": 0.5, "b2": 0.999, "eps": 1e-8}
    odd = PhaseConfig(estimator={"name": "full_gradient", "sigma": 0.2})
    with pytest.raises(ConfigError, match="sigma"):
        RunConfig(phases=(odd,))


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipes_have_no_idle_settings(recipe):
    for phase in load_recipe(recipe).phases:
        load_recipe(recipe).estimator_of(phase)


OLD = {
    "truncation": 50, "sigma": 0.01, "recompute": 10, "flatness_weight": 1e-2,
    "flatness_iterations": 10, "flatness_start": 0.0,
}  # fmt: skip
"""What the file of a run of before says of settings that were not given."""
OLD_OUTER = {"weight_decay": 1e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


def old_form(values: dict[str, Any]) -> dict[str, Any]:
    def filled(table: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        return {k: defaults.get(k) if v is None else v for k, v in table.items()}

    return {
        **values,
        "estimator": filled(values["estimator"], OLD),
        "outer": filled(values["outer"], OLD_OUTER),
    }


def test_a_run_folder_of_before_resumes_bit_for_bit(families, tmp_path: Path):
    run = RunConfig(
        name="old",
        architecture="learned_adam",
        tasks=TASKS,
        estimator=EstimatorConfig(
            name="full_es", particles=2, horizon_low=3, horizon_high=3
        ),
        outer=OuterConfig(optimizer="adam", learning_rate=1e-2),
        phases=(PhaseConfig(outer_steps=4),),
        log_every=2,
        eval_every=0,
    )
    whole = train(run, families, tmp_path / "whole")
    folder = tmp_path / "parts"
    assert not train(run, families, folder, should_stop=lambda: True).finished
    # The same folder as it would have been written: every setting, heeded or not.
    old = old_form(to_dict(run))
    assert old["estimator"]["truncation"] == 50  # which full_es never heeded
    path = folder / "config.json"
    path.write_text(json.dumps({"lopax": "0.1.0", **old}))
    file = read_arrays(folder / "checkpoint.safetensors")
    header = {k: file.header[k] for k in ("tally", "lopax")} | {
        "config_hash": config_hash(old)
    }
    save_state(folder / "checkpoint.safetensors", file.arrays, **header)

    with pytest.raises(ResumeMismatch, match="Resume with its own"):
        train(run, families, folder, resume=True)  # says less than the file
    found = read_config(folder)
    assert found.estimator.own == run.estimator.own
    assert found.outer.own == run.outer.own
    parts = train(found, families, folder, resume=True)
    assert parts.finished
    same = jax.tree.map(np.array_equal, whole.theta, parts.theta)
    assert all(jax.tree.leaves(same))


def test_a_run_folder_with_a_bad_setting_is_refused_by_name(tmp_path):
    values = to_dict(RunConfig())
    for table, name, value in (
        ("estimator", "sigma", "much"),
        ("estimator", "nmae", "pes"),
        ("outer", "optimizer", ["adam"]),
        ("estimator", "name", 3),
    ):
        odd = {**values, table: {**values[table], name: value}}
        (tmp_path / "config.json").write_text(json.dumps(odd))
        with pytest.raises(LopaxError):
            read_config(tmp_path)
