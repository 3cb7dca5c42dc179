"""`lopax.optimizer` at home in optax: what optax demands of its own contributed
optimizers, of every architecture. The meta-parameters are those of `optax_rules`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import (
    NAMES,
    assert_same,
    compact_programs,  # noqa: F401
    fit,
    make,
    params_tree,
    rule_of,
    theta_of,
)
from quick_compile import quick_compilation, quick_jit  # noqa: F401

import lopax
from lopax._core.errors import (
    ConfigError,
    MissingHorizon,
    MissingLoss,
    MissingParams,
    UnknownName,
)
from lopax.optax import from_rule

LABELS = {"dense": {"w": "slow", "b": "adam"}}
W_ONLY = {"dense": {"w": True, "b": False}}


@functools.cache
def one_step(name: str) -> dict[str, Any]:
    """First updates (and states before and after) of the rule in many settings, as
    one program: what they have in common is compiled once."""
    rule, theta, params = rule_of(name), theta_of(name), params_tree()
    inject = optax.inject_hyperparams(
        lambda lr_multiplier: from_rule(
            rule, theta, num_steps=50, lr_multiplier=lr_multiplier
        )
    )
    opts: dict[str, Any] = {
        "plain": make(name),
        "extras": make(name),
        "injected": inject(lr_multiplier=0.5),
        "schedule": make(name, lr_multiplier=lambda step: 0.25 * 0.5**step),
        "decay": make(name, weight_decay=0.1, mask=lambda params: W_ONLY),
        "multi_steps": optax.MultiSteps(make(name), every_k_schedule=2),
        "masked": optax.masked(make(name), W_ONLY),
        "groups": optax.multi_transform(
            {
                "slow": make(name, lr_multiplier=0.5),
                "adam": optax.adam(1e-3),
            },
            LABELS,
        ),
        "alone": make(name),
        "scale_by": optax.chain(
            from_rule(rule, theta, num_steps=50, lr_multiplier=-1.0),
            optax.scale_by_learning_rate(1.0),
        ),
    }

    def run(params: Any) -> dict[str, Any]:
        found = {}
        for key, opt in opts.items():
            given = {"w": params["dense"]["w"]} if key == "alone" else params
            state = opt.init(given)
            extra = {"grad": 3, "unknown": "x"} if key == "extras" else {}
            updates, after = opt.update(given, state, given, value=1.0, **extra)
            if key == "multi_steps":
                found["multi_steps/first"] = updates
                updates, after = opt.update(given, after, given, value=1.0)
            found[key] = updates
            if key == "injected":
                found["hyper"] = after.hyperparams["lr_multiplier"]
        info = rule.update(theta, params, rule.init(theta, params, 50), params, value=1)
        return {**found, "info": info[2]}

    return quick_jit(run)(params)


@pytest.mark.parametrize("name", NAMES)
class TestEveryArchitecture:
    def test_trains_and_survives_nan_in_a_chain_under_jit_and_scan(self, name):
        opt = optax.chain(
            optax.clip_by_global_norm(10.0),
            make(name, lr_multiplier=optax.linear_schedule(1.5, 0.5, 50)),
        )
        params, state, losses = fit(opt, params_tree(), 50, poison=(0, 9, 12))
        assert losses[-1] < 0.9 * losses[0]
        assert losses[12] == losses[13]  # a bad step changes nothing
        assert int(state[1].rule.skipped) == 3
        for leaf in jax.tree.leaves((params, state)):
            assert np.all(np.isfinite(np.asarray(leaf, np.float32)))

    def test_unknown_extra_arguments_are_ignored(self, name):
        assert_same(one_step(name)["extras"], one_step(name)["plain"], 0, 0)

    def test_inject_hyperparams_and_schedules(self, name):
        found = one_step(name)
        half = jax.tree.map(lambda x: 0.5 * x, found["plain"])
        assert_same(found["injected"], half)
        assert float(found["hyper"]) == 0.5
        assert_same(found["schedule"], jax.tree.map(lambda x: 0.5 * x, half))

    def test_weight_decay_is_decoupled_masked_and_follows_the_step_scale(self, name):
        found, params = one_step(name), params_tree()
        plain, rate = found["plain"], 0.1 * found["info"].step_scale
        expected = {
            "dense": {
                "w": plain["dense"]["w"] - rate * params["dense"]["w"],
                "b": plain["dense"]["b"],
            }
        }
        assert_same(found["decay"], expected)
        assert np.any(expected["dense"]["w"] != plain["dense"]["w"])

    def test_multi_steps(self, name):
        found = one_step(name)
        assert not any(np.any(x) for x in jax.tree.leaves(found["multi_steps/first"]))
        assert_same(found["multi_steps"], found["plain"])

    def test_masked_steps_what_it_is_given_as_if_alone(self, name):
        found, params = one_step(name), params_tree()
        assert_same(found["masked"]["dense"]["w"], found["alone"]["w"])
        assert_same(found["masked"]["dense"]["b"], params["dense"]["b"], 0, 0)

    def test_groups_have_settings_of_their_own(self, name):
        found = one_step(name)
        assert_same(found["groups"]["dense"]["w"], 0.5 * found["alone"]["w"])
        np.testing.assert_allclose(
            found["groups"]["dense"]["b"],
            -1e-3 * np.sign(params_tree()["dense"]["b"]),
            rtol=1e-3,
        )

    def test_the_uphill_form_with_learning_rate_one_is_the_optimizer(self, name):
        assert_same(one_step(name)["scale_by"], one_step(name)["plain"], 1e-6)

    def test_dtypes_and_shapes_are_stable_and_the_state_may_be_donated(self, name):
        """bfloat16 parameters; no array of the state is used twice or is theta's."""
        opt, params = make(name, weight_decay=0.1, report=True), params_tree("bfloat16")
        state = opt.init(params)

        def kinds(tree: Any) -> Any:
            return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

        before = kinds(state)
        step = jax.jit(
            lambda s, p: opt.update(p, s, p, value=jnp.float32(1.0)), donate_argnums=0
        )
        _, state = step(state, params)
        updates, state = step(state, params)
        assert kinds(state) == before
        assert kinds(updates) == kinds(params)
        for leaf in jax.tree.leaves(theta_of(name)):
            assert np.all(np.isfinite(leaf))

    def test_trees_without_elements(self, name):
        opt = make(name, weight_decay=0.1, report=True)
        shapes: list[dict[str, Any]] = [{}, {"x": (0, 3)}, {"x": (0,), "y": (2, 0)}]
        trees = [{k: jnp.zeros(s) for k, s in tree.items()} for tree in shapes]

        def two_steps(trees: Any) -> Any:
            found = []
            for params in trees:
                state = opt.init(params)
                _, state = opt.update(params, state, params, value=1.0)
                found.append(opt.update(params, state, params, value=2.0))
            return found

        results = quick_jit(two_steps)(trees)
        for params, (updates, state) in zip(trees, results, strict=True):
            assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
            assert int(state.rule.iteration) == 2
            for leaf in jax.tree.leaves(state):
                assert np.all(np.isfinite(leaf))


def test_missing_arguments_show_the_call_to_change():
    opt, params = make("celo"), params_tree()
    state = opt.init(params)
    with pytest.raises(MissingLoss, match=r"value=loss"):
        opt.update(params, state, params)
    with pytest.raises(MissingParams, match=r"opt.update\(grads, state, params"):
        opt.update(params, state, value=1.0)
    with pytest.raises(MissingHorizon, match="num_steps=2_000"):
        lopax.optimizer("celo", theta=theta_of("celo"), lstm=18)


def test_bad_arguments_are_refused_by_name():
    given: dict[str, Any] = {"theta": theta_of("celo"), "lstm": 18}
    with pytest.raises(UnknownName, match="did you mean 'celo'"):
        lopax.optimizer("celoo", num_steps=10)
    with pytest.raises(ConfigError, match="num_steps = 0"):
        lopax.optimizer("celo", num_steps=0, **given)
    with pytest.raises(ConfigError, match="weight_decay = -1"):
        lopax.optimizer("celo", num_steps=5, weight_decay=-1.0, **given)
    with pytest.raises(ConfigError, match="not both"):
        lopax.optimizer("celo", num_steps=5, weights="celo", **given)


def test_the_public_function_can_be_injected():
    params = params_tree()
    build = optax.inject_hyperparams(lopax.optimizer, static_args=("num_steps",))
    opt = build("celo", num_steps=50, weight_decay=0.5, backend="auto")
    state = jax.jit(opt.init)(params)
    assert float(state.hyperparams["weight_decay"]) == 0.5
    updates, _ = jax.jit(opt.update)(params, state, params, value=1.0)
    plain = lopax.optimizer("celo", num_steps=50, weight_decay=0.5)
    expected, _ = jax.jit(plain.update)(params, plain.init(params), params, value=1.0)
    assert_same(updates, expected)


def test_weights_and_theta_in_memory_are_the_same_optimizer(tmp_path):
    theta, params = theta_of("celo_adam"), params_tree()
    lopax.save_theta(tmp_path / "w.safetensors", theta, rule_of("celo_adam"))
    a: Any = lopax.optimizer(
        "celo_adam", num_steps=9, weights=tmp_path / "w.safetensors"
    )
    b: Any = lopax.optimizer(
        "celo_adam", num_steps=9, theta=theta, lstm=18, step_mult=2e-2
    )
    x, _ = jax.jit(a.update)(params, a.init(params), params, value=1.0)
    y, _ = jax.jit(b.update)(params, b.init(params), params, value=1.0)
    assert_same(x, y, 0, 0)


def test_scale_by_is_the_optimizer_uphill():
    given: dict[str, Any] = {"theta": theta_of("celo"), "lstm": 18, "num_steps": 9}
    params = params_tree()
    downhill, uphill = lopax.optimizer("celo", **given), lopax.scale_by("celo", **given)
    a, _ = jax.jit(downhill.update)(params, downhill.init(params), params, value=1.0)
    b, _ = jax.jit(uphill.update)(params, uphill.init(params), params, value=1.0)
    assert_same(a, jax.tree.map(jnp.negative, b), 0, 0)


@pytest.mark.parametrize("name", lopax.list_weights())
def test_bundled_weights_train_without_tuning(name):
    """What a practitioner does: three lines, and the loss goes down to near zero."""
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(data.target, jnp.float32)

    def logistic(params):
        h = jnp.tanh(x @ params["w1"] + params["b1"])
        z = h @ params["w2"]
        return jnp.mean(jax.nn.softplus(z) - y * z)

    k1, k2 = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(k1, (30, 16)) / 30**0.5,
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(k2, (16,)) / 4,
    }
    opt: Any = lopax.optimizer(name, num_steps=200)

    def body(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(logistic)(params)
        updates, state = opt.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    run = jax.jit(lambda p: jax.lax.scan(body, (p, opt.init(p)), None, length=200)[1])
    losses = run(params)
    assert float(losses[-1]) < 0.1 * float(losses[0])
