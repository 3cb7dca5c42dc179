"""Optim4RL and its relatives against NumPy, and the pipeline they are trained in."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_jit
from toy import LearnedRate, ParabolaFamily

from lopax import meta
from lopax._core.errors import ConfigError
from lopax.architectures import architecture
from lopax.estimators import (
    Flatness,
    Horizon,
    Objective,
    ParticleSettings,
    PipelineBackprop,
    Unroller,
)
from lopax.estimators.pipeline import even_ages
from lopax.reproductions import CaseResults, Measured
from lopax.reproductions.cases import Case
from lopax.reproductions.optim4rl import OPTIM4RL, SETTINGS, judge
from lopax.reproductions.rl_agents import recipe

KEY = jax.random.key(0)


# The rules


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gru(theta: Any, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """One element's cell, gate by gate."""
    n = h.shape[0]
    given = x @ theta["wx"] + theta["bx"]
    r = sigmoid(given[:n] + h @ theta["wh"][:, :n])
    z = sigmoid(given[n : 2 * n] + h @ theta["wh"][:, n : 2 * n])
    new = np.tanh(given[2 * n :] + r * (h @ theta["wh"][:, 2 * n :] + theta["bh"]))
    return (1.0 - z) * new + z * h


def reference(name: str, theta: Any, grads: np.ndarray, lr: float) -> list[float]:
    """Steps [T] of one element."""
    states = [np.zeros(8), np.zeros(8)]
    steps = []
    for g in grads:
        if name == "optim4rl":
            outs = []
            for i, (net, x) in enumerate((("first", g), ("second", g * g))):
                states[i] = gru(theta[net]["gru"], np.asarray([x]), states[i])
                head = theta[net]["head"]
                outs.append((states[i] @ head["w"] + head["b"])[0])
            step = np.sign(g) * np.exp(outs[0]) / np.sqrt(np.exp(outs[1]) + 1e-8)
        else:
            x = np.asarray([g])
            if name == "l2lgd2":
                small = abs(g) < np.exp(-10.0)
                x = np.asarray(
                    [-1.0, np.exp(10.0) * g]
                    if small
                    else [np.log(abs(g)) / 10.0, np.sign(g)]
                )
            states[0] = gru(theta["gru"], x, states[0])
            out = states[0] @ theta["head"]["w"] + theta["head"]["b"]
            step = np.exp(out[0]) * g
            if name == "linear_optim":
                step += np.exp(out[1]) * out[2]
        steps.append(-lr * step)
    return steps


@pytest.mark.parametrize("name", ["optim4rl", "linear_optim", "l2lgd2"])
def test_rules_against_numpy(name):
    rule = architecture(name, lr=0.02)
    theta = rule.init_theta(KEY)
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    theta = treedef.unflatten(
        [
            x + 0.3 * jax.random.normal(k, x.shape)
            for x, k in zip(leaves, keys, strict=True)
        ]
    )
    grads = np.asarray(
        [[0.3, -2.0, 0.0, 1e-6], [-0.1, 5.0, 1e-3, -1e-6], [0.7, 0.2, 0.0, 1e-2]]
    )
    params = {"w": jnp.ones(4)}

    @quick_jit
    def run(theta, grads):
        def step(state, g):
            updates, state, _ = rule.update(theta, {"w": g}, state, params)
            return state, updates["w"]

        return jax.lax.scan(step, rule.init(theta, params), grads)[1]

    found = np.asarray(run(theta, jnp.asarray(grads, jnp.float32)))
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), theta)
    for i in range(4):
        # `linear_optim` waits for the first gradient that is not zero.
        waits = int(np.argmax(grads[:, i] != 0.0)) if name == "linear_optim" else 0
        acting = reference(name, exact, grads[waits:, i], 0.02)
        expected = np.concatenate([np.zeros(waits), acting])
        np.testing.assert_allclose(found[:, i], expected, rtol=2e-5, atol=1e-9)


def test_a_zero_gradient_is_no_step_and_noise_is_a_full_one():
    rule = architecture("optim4rl")
    theta, params = rule.init_theta(KEY), {"w": jnp.zeros(2)}
    state = rule.init(theta, params)
    updates, _, _ = rule.update(theta, {"w": jnp.asarray([0.0, 1e-20])}, state, params)
    assert float(updates["w"][0]) == 0.0
    assert 1e-4 < -float(updates["w"][1]) < 1e-2


@pytest.mark.parametrize("name", ["optim4rl", "linear_optim", "l2lgd2"])
def test_gradients_are_constants_to_the_meta_gradient(name):
    rule = architecture(name)
    theta, params = rule.init_theta(KEY), {"w": jnp.ones(3)}
    state = rule.init(theta, params)

    def step(g):
        return jnp.sum(rule.update(theta, {"w": g}, state, params)[0]["w"])

    assert not np.any(jax.grad(step)(jnp.asarray([1.0, -2.0, 0.5])))


def test_the_clip_is_elementwise():
    rule = architecture("l2lgd2", clip=1.0)
    theta, params = rule.init_theta(KEY), {"w": jnp.zeros(2)}
    state = rule.init(theta, params)
    one, _, _ = rule.update(theta, {"w": jnp.asarray([1.0, 0.5])}, state, params)
    big, _, info = rule.update(theta, {"w": jnp.asarray([9.0, 0.5])}, state, params)
    np.testing.assert_array_equal(one["w"], big["w"])
    assert int(info.clipped) == 1


# The pipeline


def pipeline(steps: int, stride: int, num: int, **changes) -> PipelineBackprop:
    horizon = Horizon(low=steps, high=steps, staggered=changes.pop("staggered", True))
    unroller = Unroller(
        optimizer=LearnedRate(), family=ParabolaFamily(), horizon=horizon, **changes
    )
    settings = ParticleSettings(num_particles=num)
    return PipelineBackprop(unroller=unroller, settings=settings, truncation=stride)


@pytest.mark.parametrize(
    ("num", "steps", "stride"), [(64, 128, 4), (5, 12, 4), (3, 30, 4), (1, 8, 4)]
)
def test_first_ends_are_spread_as_published(num, steps, stride):
    """Agent i restarts before window t if t mod n is floor(i (n - 1) / (N - 1))."""
    windows = -(-steps // stride)
    ages = np.asarray(even_ages(jnp.full((num,), steps), stride))
    for t in range(1, 2 * windows + 1):
        due = ages >= steps
        expected = [
            t - 1 > 0 and (t - 1) % windows == i * (windows - 1) // max(num - 1, 1)
            for i in range(num)
        ]
        np.testing.assert_array_equal(due, expected)
        ages = np.where(due, 0, ages) + stride


def run(estimator: PipelineBackprop, count: int) -> Any:
    theta = LearnedRate().init_theta(None)

    def body(state, key):
        grad, state, info = estimator.step(theta, state, key)
        return state, (grad, info, state.step)

    @quick_jit
    def go(key):
        return jax.lax.scan(
            body, estimator.init(theta, key), jax.random.split(key, count)
        )[1]

    return go(KEY)


def test_runs_restart_between_windows():
    _, info, steps = run(pipeline(6, 2, 3), 6)
    np.testing.assert_array_equal(info.finished, [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(
        steps, [[2, 6, 4], [4, 2, 6], [6, 4, 2], [2, 6, 4], [4, 2, 6], [6, 4, 2]]
    )
    _, info, steps = run(pipeline(6, 2, 3, staggered=False), 5)
    np.testing.assert_array_equal(info.finished, [0, 0, 0, 3, 0])
    np.testing.assert_array_equal(steps[:, 0], [2, 4, 6, 2, 4])
    np.testing.assert_array_equal(info.inner_steps, [6.0] * 5)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_gradient_is_that_of_the_fresh_loss(first_order):
    """On x^2 / 2 from 1: after k steps of rate a, x = (1 - a)^k. First order, the
    gradients are constants, and d x / d a is minus their sum."""
    estimator = pipeline(4, 2, 1, staggered=False, first_order=first_order)
    grads, info, _ = run(estimator, 3)
    a = np.exp(-1.0)

    def slope(k: int) -> float:
        """Of the loss after windows of two from x = (1 - a)^k."""
        before, middle, x = ((1 - a) ** (k + i) for i in range(3))
        exact = -(before + middle) + a * before
        return x * a * (-(before + middle) if first_order else exact)

    expected = [slope(0), slope(2), slope(0)]
    np.testing.assert_allclose(grads["rate"][:, 0], expected, rtol=1e-5)
    losses = [0.5 * (1 - a) ** (2 * k) for k in (2, 4, 2)]
    np.testing.assert_allclose(info.loss, losses, rtol=1e-5)


def test_objectives_over_a_whole_run_are_refused():
    with pytest.raises(ConfigError, match="fresh batches"):
        pipeline(4, 2, 1, objective=Objective(kind="min"))
    with pytest.raises(ConfigError, match="emphasis"):
        pipeline(4, 2, 1, emphasis=1.0)
    with pytest.raises(ConfigError, match="flatness"):
        pipeline(4, 2, 1, flatness=Flatness(measure="trace", weight=0.1))


# Recipes and the reproduction

TINY = {
    **SETTINGS,
    "hidden": [4],
    "agents": 4,
    "windows": 2,
    "outer_steps": 2,
    "test_envs": 2,
    "test_updates": 4,
    "test_seeds": 1,
    "choice_seeds": [7],
    "look_every": 2,
    "last_looks": 1,
    "cartpole_updates": 20,
}


def test_the_shipped_recipe_is_the_reproductions():
    from pathlib import Path

    path = Path(__file__).parents[1] / "recipes" / "optim4rl.toml"
    run = meta.load_recipe(path)
    expected = recipe(SETTINGS, pipeline=True, outer_steps=78, seed=run.seed)
    for field in ("tasks", "estimator", "outer", "settings", "architecture", "phases"):
        assert getattr(run, field) == getattr(expected, field), field


def test_groups_of_agents_in_recipes():
    values = {"tasks": [{"environment": "catch", "agent": "a3c"}]}
    from lopax._core.config import from_dict
    from lopax._core.errors import UnknownName

    with pytest.raises(ConfigError, match="a2c"):
        from_dict(meta.RunConfig, values)
    with pytest.raises(UnknownName, match="'agent'"):
        from_dict(meta.RunConfig, {"tasks": [{"environment": "catch", "agnt": "a2c"}]})
    with pytest.raises(UnknownName, match="'network'"):
        from_dict(meta.RunConfig, {"tasks": [{"datasets": ["mnist"], "netwrk": "mlp"}]})
    both = from_dict(
        meta.RunConfig,
        {"tasks": [{"environment": "catch"}, {"datasets": ["digits"]}]},
    )
    assert [type(t) for t in both.tasks] == [meta.AgentsConfig, meta.TasksConfig]
    unknown = dataclasses.replace(both.tasks[0], environment="catsh")
    with pytest.raises(UnknownName, match="'catch'"):
        meta.build_family(unknown)


@pytest.mark.shortened
def test_a_short_run_of_the_variants(tmp_path):
    said: list[str] = []
    case = Case(0, 1.0, TINY, tmp_path, said.append)
    found = OPTIM4RL.variants["pipeline"](case)
    assert {"AUC", "AUC, other seeds", "CartPole at the end"} <= set(found.values)
    assert found.values["CartPole diverged"] == 0.0
    assert all(np.isfinite(v) for v in found.values.values())
    assert len(found.curves["return on Catch"]) == 2
    again = OPTIM4RL.variants["pipeline"](case)
    assert again == found  # trained once, and paired


def results(**changes: float) -> CaseResults:
    values = {"pipeline": 0.5, "no pipeline": 0.1, "adam at the same rate": 0.05}
    auc = {**values, "adam, tuned": 0.6, "rmsprop, tuned": 0.6}
    auc = {k: changes.get(k, v) for k, v in auc.items()}
    far = {
        "CartPole at the end": changes.get("far", 100.0),
        "CartPole diverged": changes.get("diverged", 0.0),
    }
    measured = {k: [Measured({"AUC": v, **far})] for k, v in auc.items()}
    still = Measured({"AUC": -0.6, "CartPole at the end": 22.0})
    return CaseResults(measured={**measured, "no learning": [still]})


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True, True]),
        ({"no pipeline": 0.31}, [False, True, True]),
        ({"adam at the same rate": 0.31}, [True, False, True]),
        ({"far": 43.0}, [True, True, False]),
        ({"diverged": 1.0}, [True, True, False]),
        ({"pipeline": float("nan")}, [False, False, True]),
    ],
)
def test_the_rule(changes, passed):
    assert [c.passed for c in judge(results(**changes))] == passed
