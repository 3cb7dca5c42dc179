"""HUB: its weightings, whose state is whose, and as a member of a comparison."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopax
from lopax import evaluate, tasks
from lopax._core import tree as trees
from lopax._core.errors import (
    ConfigError,
    MissingHorizon,
    MissingParams,
    UnknownName,
)
from lopax.evaluate.refs import optimizer_spec
from lopax.optax.hybrid import Weighting

ADAM, SGD = optax.adam(1e-3), optax.sgd(0.1)
"""Two optimizers whose updates are far apart."""


def params_tree(n: int = 5):
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(4,)), jnp.bfloat16),
        "none": jnp.zeros((0, 2)),
        "scale": jnp.asarray(0.5),
    }


def first_update(opt, grads, params) -> Any:
    updates, _ = opt.update(grads, opt.init(params), params, value=1.0)
    return updates


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("name", ["published", "max", "fixed"])
def test_the_formula(name, inverted):
    params = params_tree()
    grads = jax.tree.map(lambda p: 3.0 * p, params)
    options: Any = {
        "weighting": name,
        "temperature": 0.7,
        "mix": 0.2,
        "inverted": inverted,
    }
    found = first_update(lopax.hub(SGD, ADAM, **options), grads, params)
    by_rule = first_update(SGD, grads, params)
    by_hand = first_update(ADAM, grads, params)
    for key in ("w", "scale"):
        size = np.abs(np.asarray(grads[key], np.float64)) / 0.7
        share = {
            "published": np.exp(size) / np.sum(np.exp(size)),
            "max": np.exp(size - size.max()),
            "fixed": np.full(size.shape, 0.2),
        }[name]
        share = 1.0 - share if inverted else share
        want = share * by_hand[key] + (1.0 - share) * by_rule[key]
        np.testing.assert_allclose(found[key], want, rtol=2e-5)
    for key, param in params.items():
        assert found[key].dtype == param.dtype and found[key].shape == param.shape


@pytest.mark.parametrize("n", [100, 10_000, 1_000_000])
def test_the_published_weighting_is_nearly_a_no_op(n):
    """|U_HUB - U_L| is O(1/n): at most exp(max |g|) / n of the gap between the two."""
    grad = {"w": 0.1 * jax.random.normal(jax.random.key(0), (n,))}
    params = jax.tree.map(jnp.zeros_like, grad)
    by_rule = first_update(SGD, grad, params)["w"]
    by_hand = first_update(ADAM, grad, params)["w"]
    gap = jnp.abs(by_hand - by_rule)
    bound = float(jnp.exp(jnp.max(jnp.abs(grad["w"])))) / n
    moved = {}
    for name in ("published", "max"):
        hub = lopax.hub(SGD, ADAM, weighting=name)
        moved[name] = jnp.abs(first_update(hub, grad, params)["w"] - by_rule)
    rounding = 1e-6 * jnp.max(jnp.abs(by_rule))
    assert float(jnp.max(moved["published"] - bound * gap)) <= rounding
    # All weights are about 1/n, and together they are one.
    shares = Weighting("published")(grad["w"])
    np.testing.assert_allclose(shares, 1.0 / n, rtol=0.8)
    assert float(jnp.sum(shares)) == pytest.approx(1.0, rel=1e-3)
    # The default does take part: here, as |g| << 1, nearly all of the step is Adam's.
    assert float(jnp.sum(moved["max"])) > 0.5 * float(jnp.sum(gap))


def test_weights_stay_in_range_for_any_finite_gradient():
    for scale in (0.0, 1e-30, 1.0, 1e3, 1e30):
        grad = scale * jax.random.normal(jax.random.key(0), (64,))
        for name in ("published", "max"):
            share = np.asarray(Weighting(name)(grad))
            assert np.isfinite(share).all() and share.min() >= 0.0
            assert share.max() <= 1.0
    # A large gradient makes it one-hot.
    assert np.count_nonzero(Weighting("max")(jnp.asarray([1e3, 1.0, -2.0]))) == 1


def test_each_keeps_its_own_state_and_sees_where_the_parameters_are():
    """The hand-made moments are those of plain Adam on the same gradients; the learned
    rule is given the parameters that the hybrid reached."""
    seen: list[np.ndarray] = []

    def watch(updates, state, params, **extra):
        seen.append(np.asarray(params["x"]))
        assert extra["value"] is not None
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    rule = optax.GradientTransformationExtraArgs(lambda params: (), watch)  # type: ignore[arg-type]
    hub: Any = lopax.hub(rule, optax.adam(0.3), weighting="fixed", mix=0.25)
    adam: Any = optax.scale_by_adam()
    params: Any = {"x": jnp.asarray([1.0, -2.0])}
    state, alone = hub.init(params), adam.init(params)
    for t in range(4):
        grads = jax.tree.map(lambda p, t=t: p + t, params)
        before = np.asarray(params["x"])
        updates, state = hub.update(grads, state, params, value=1.0)
        direction, alone = adam.update(grads, alone)
        want = 0.25 * -0.3 * direction["x"] + 0.75 * -0.1 * grads["x"]
        np.testing.assert_allclose(updates["x"], want, rtol=1e-5)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(seen[t], before)


def test_broken_steps_move_nothing_and_poison_nobody():
    params = params_tree()
    theta = lopax.architecture("celo", lstm=8).init_theta(jax.random.key(0))
    hub: Any = lopax.hub("celo", ADAM, num_steps=10, theta=theta, lstm=8)
    step = jax.jit(lambda g, s, v: hub.update(g, s, params, value=v))
    grads = jax.tree.map(jnp.ones_like, params)
    state = hub.init(params)
    bad = {**grads, "b": grads["b"].at[0].set(jnp.nan)}
    for g, value in ((bad, 1.0), (grads, jnp.inf)):
        updates, after = step(g, state, value)
        assert not any(np.any(np.asarray(u)) for u in jax.tree.leaves(updates))
        jax.tree.map(np.testing.assert_array_equal, after.hand_made, state.hand_made)
        state = after
    updates, state = step(grads, state, 1.0)
    leaves = trees.named_leaves((updates, state))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in leaves.values())
    assert np.any(np.asarray(updates["w"]))


def test_bundled_weights_and_a_scan():
    """As in the documentation; also in a chain and with a schedule of its own."""
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, 40))
    hub = optax.chain(lopax.hub("celo", adam, num_steps=40), optax.scale(1.0))

    def loss_fn(params):
        return jnp.sum((params["x"] - 3.0) ** 2)

    def body(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = hub.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    params = {"x": jnp.zeros((6,))}
    _, losses = jax.jit(
        lambda p: jax.lax.scan(body, (p, hub.init(p)), None, length=40)
    )(params)
    assert losses[-1] < 0.98 * losses[0]


def test_what_cannot_be_is_said():
    with pytest.raises(MissingHorizon):
        lopax.hub("celo", ADAM)
    with pytest.raises(UnknownName, match="celo"):
        lopax.hub("cello", ADAM, num_steps=10)
    with pytest.raises(ConfigError, match="num_steps="):
        lopax.hub(SGD, ADAM, num_steps=10)
    wrong: Any = ({"weighting": "softmax"}, {"temperature": 0.0}, {"mix": 1.5})
    for options in wrong:
        with pytest.raises(ConfigError, match=next(iter(options.values())).__repr__()):
            lopax.hub(SGD, ADAM, **options)
    params = params_tree()
    with pytest.raises(MissingParams):
        lopax.hub(SGD, ADAM).update(params, lopax.hub(SGD, ADAM).init(params))


def test_names_in_a_comparison():
    spec = optimizer_spec("hub:celo+adam@0.001")
    assert spec.name == "hub(celo+adam@0.001)" and not spec.tunable
    assert spec.settings["weighting"] == "max"
    fixed = optimizer_spec("Mixed=hub-fixed:celo+adam@0.001")
    assert fixed.name == "Mixed" and fixed.settings["weighting"] == "fixed"
    assert optimizer_spec("hub:celo+adam").learning_rates == evaluate.LEARNING_RATES
    assert spec.identity != fixed.identity
    for text, message in (
        ("hub:celo", "LEARNED"),
        ("hub:adam+celo", "learning rates to tune"),
        ("hub-median:celo+adam", "median"),
    ):
        with pytest.raises(ConfigError, match=message):
            optimizer_spec(text)


def test_it_runs_as_a_member_of_a_comparison():
    """The harness and `lopax.hub` give the same run; tuned over Adam's rates."""
    task = tasks.task("quadratic")
    config = evaluate.RunConfig(num_steps=20, eval_every=20)
    learned = evaluate.from_transformation("sgd", optax.sgd(0.01))
    adam = evaluate.default_rate("adam", 1e-2)
    ready = evaluate.from_transformation(
        "hub", lopax.hub(optax.sgd(0.01), optax.adam(1e-2))
    )
    both = [
        evaluate.run(spec, task, config, seeds=[0]).train
        for spec in (evaluate.hub(learned, adam), ready)
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)
    tuned = evaluate.hub(learned, evaluate.baseline("adam"))
    found = evaluate.run(tuned, task, config, seeds=[0])
    assert found.train.shape == (1, 15, 20)
    np.testing.assert_allclose(
        found.train[0, tuned.learning_rates.index(0.01)], both[0][0, 0], rtol=1e-5
    )
