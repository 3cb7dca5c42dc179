"""The reproductions of L3RS and HUB: shortened runs, and their rules on made-up
results."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from lopax import evaluate, tasks
from lopax.architectures import l3rs as rule
from lopax.reproductions import CaseResults, Measured, hub, l3rs
from lopax.reproductions.cases import Case

L3RS_SMALL = {
    **l3rs.SETTINGS,
    "horizon": 5,
    "test_horizons": {"T": 5},
    "particles": 2,
    "held_out_tasks": 3,
    "rates": [1e-3, 1e-2],
}
HUB_SMALL = {
    **hub.SETTINGS,
    "architecture": "learned_sgd",
    "rule": {},
    "horizon": 3,
    "particles": 2,
    "seeds": 2,
    "steps": {hub.HORIZON: 4},
}


def case(folder, settings, share=1e-3):
    return Case(0, share, settings, folder, lambda text: None)


@pytest.mark.shortened
def test_l3rs_in_short(tmp_path):
    found = {
        name: function(case(tmp_path / str(i), L3RS_SMALL))
        for i, (name, function) in enumerate(l3rs.L3RS.variants.items())
        if name in ("l3rs", "adam head cosine")
    }
    for name, measured in found.items():
        assert len(measured.curves[l3rs.PER_TASK]) == 3, name
        assert np.isfinite(list(measured.values.values())).all(), name
        mean = np.mean(measured.curves[l3rs.PER_TASK])
        assert measured.values["loss T"] == pytest.approx(mean)
    assert found["adam head cosine"].values["rate T"] in L3RS_SMALL["rates"]


def test_l3rs_at_size_is_a_deep_network_that_knows_its_classes():
    settings = {**l3rs.AT_SIZE, "pretraining": dict(l3rs.AT_SIZE["pretraining"])}
    settings["pretraining"]["num_steps"] = 2
    families = l3rs._tasks(settings)
    params, _ = jax.eval_shape(families.held_out.base.init, jax.random.key(0))
    names = rule.tensors_of(params)
    assert sum(name.split(":")[0].endswith("/w") for name in names) == 11
    assert set(families.head_names) == {"head/w", "head/b"}
    # Shapes alone are enough to name a network's tensors.
    made = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params)
    assert rule.tensors_of(made) == names
    assert set(l3rs.TUNED_AT_SIZE) < set(l3rs.L3RS_AT_SIZE.variants)


class Watched(tasks.SampledTask):
    """Says where the parameters are."""

    def metrics(self, params, task_state, key, split):
        return {"trunk": params["layer1"]["w"].sum(), "head": params["layer2"]["b"][0]}


@pytest.mark.parametrize(
    "name", ["adam head constant", "adam head cosine", "adam cosine"]
)
def test_whether_only_the_head_moves(name):
    task = Watched(tasks.fine_tuning().held_out)
    # One batch each: a mean of more could differ in its last digit.
    config = evaluate.RunConfig(
        num_steps=3, eval_every=3, eval_batches=1, final_batches=1
    )
    spec = l3rs.baseline(name, [1e-2])
    seen = evaluate.run(spec, task, config, seeds=[0]).metrics
    moved = {k: bool(np.ptp(seen[f"test/{k}"]) > 0) for k in ("trunk", "head")}
    assert moved == {"trunk": "head" not in name, "head": True}


def l3rs_results(ours, shared, best):
    """Mean losses with a little paired noise over 50 tasks and two meta-seeds."""
    noise = 0.2 + 0.01 * np.random.default_rng(0).normal(size=(2, 50))
    levels = {"l3rs": ours, "shared coefficients": shared}
    levels |= {name: best + 0.1 * i for i, name in enumerate(l3rs.BASELINES)}
    return CaseResults(
        measured={
            v: [Measured({}, {l3rs.PER_TASK: list(noise[s] + x)}) for s in (0, 1)]
            for v, x in levels.items()
        }
    )


def test_the_rule_of_l3rs():
    wins = [c.passed for c in l3rs.judge(l3rs_results(0.0, 0.1, 0.2))]
    assert wins == [True, True]
    wins = [c.passed for c in l3rs.judge(l3rs_results(0.1, 0.0, 0.2))]
    assert wins == [True, False]
    wins = [c.passed for c in l3rs.judge(l3rs_results(0.1, 0.3, 0.0))]
    assert wins == [False, True]
    wins = [c.passed for c in l3rs.judge(l3rs_results(float("nan"), 0.3, 0.2))]
    assert wins == [False, False]
    # Some baselines may be left out.
    fewer = l3rs_results(0.0, 0.1, 0.2)
    kept = {v: m for v, m in fewer.measured.items() if "head" not in v}
    assert all(c.passed for c in l3rs.judge(CaseResults(measured=kept)))
    # A difference within the noise is none.
    mixed: Any = l3rs_results(0.0, 0.1, 0.2)
    shuffled = np.random.default_rng(1).normal(0.2, 0.5, size=50)
    mixed.measured["shared coefficients"][0].curves[l3rs.PER_TASK][:] = list(shuffled)
    assert not l3rs.judge(mixed)[1].passed
    # A baseline that diverged is not the best one.
    mixed.measured["adam constant"][0].curves[l3rs.PER_TASK][0] = float("nan")
    assert "adam cosine" in l3rs.judge(mixed)[0].found


def test_hub_in_short(tmp_path):
    found = {
        name: function(case(tmp_path / str(i), HUB_SMALL))
        for i, (name, function) in enumerate(hub.HUB.variants.items())
        if name in ("learned", "max", "adam")
    }
    for measured in found.values():
        assert set(measured.values) == {hub.HORIZON}
        assert all(0.0 <= x <= 1.0 for x in measured.values.values())
    # One meta-training served all of them.
    assert len(list(tmp_path.glob("rule-*"))) == 1


def test_hub_problems_are_what_they_say():
    settings = {**hub.SETTINGS, "scale": 3.0}

    def start(row):
        return hub.problem(row, settings).init(jax.random.key(0))[0]

    plain, scaled, wide = (start(r) for r in (hub.HORIZON, hub.SCALED, hub.WIDE))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3.0 * a, b), plain, scaled)
    assert [x["w"].shape[1] for x in wide.values()] == [128, 128, 128, 10]
    noisy: Any = hub.problem(hub.NOISY, settings)
    assert noisy.rows["train"].size == 100
    # It starts from a network that knows the digits, but not so noisy ones.
    params, state = noisy.init(jax.random.key(0))
    right = noisy.metrics(params, state, jax.random.key(0), "test")["accuracy"]
    assert 0.7 < right < 0.93


def hub_results(**levels):
    usual = {"learned": 0.5, "published": 0.52, "max": 0.95, "adam": 0.96}
    names: Any = {**dict.fromkeys(hub.CONTESTANTS, 0.8), **usual, **levels}
    return CaseResults(
        measured={v: [Measured({r: x for r in hub.STEPS})] for v, x in names.items()}
    )


def test_the_rule_of_hub():
    def passed(**levels):
        return [c.passed for c in hub.judge(hub_results(**levels))]

    assert passed() == [True, True, True]
    assert passed(max=0.505) == [False, True, False]
    assert passed(published=0.9) == [True, False, True]
    assert passed(max=float("nan")) == [False, True, False]
    assert "fixed mix 0.800" in hub.judge(hub_results())[0].found
    assert dataclasses.replace(hub.HUB, minutes=1.0).variants is hub.HUB.variants
