"""L3RS: the rule against NumPy, which networks it takes, which directions."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopax
from lopax._core import tree as trees
from lopax._core.errors import ConfigError, StructureMismatch, UnknownName
from lopax.architectures import l3rs
from lopax.blocks.directions import DIRECTIONS

STEPS = 5
NETWORK = {
    "dense": {"w": np.zeros((4, 3)), "b": np.zeros((3,))},
    "head": {"w": np.zeros((3, 2)), "scale": np.zeros(())},
}


def made_up(seed: int = 0):
    """Parameters, gradients [T] and losses [T]."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), NETWORK)
    grads = jax.tree.map(lambda x: rng.normal(size=(STEPS, *x.shape)), NETWORK)
    return params, grads, np.asarray([2.0, 1.5, 1.7, -0.2, 1.1])


def theta_of(rule, seed: int = 0, size: float = 0.3):
    theta = rule.init_theta(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(size * rng.normal(size=x.shape), jnp.float32), theta
    )


def run(rule, theta, params, grads, losses, num_steps: int = STEPS):
    """Parameters after each step."""
    opt = rule.transformation(theta, num_steps)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state, path = opt.init(params), []
    for t in range(STEPS):
        grad = jax.tree.map(lambda g, t=t: jnp.asarray(g[t], jnp.float32), grads)
        updates, state = opt.update(grad, state, params, value=losses[t])
        params = optax.apply_updates(params, updates)
        path.append(trees.named_leaves(params))
    return path


def numpy_l3rs(theta, tensors, params, grads, losses, per_layer, num_steps):
    """The formulas of the docs page, tensor by tensor and step by step."""
    theta = jax.tree.map(lambda x: np.asarray(x, np.float64), theta)
    names = [text.rpartition(":")[0] for text in tensors]
    params = {k: np.array(v) for k, v in trees.named_leaves(params).items()}
    grads = trees.named_leaves(grads)
    adam_m = {k: np.zeros_like(v) for k, v in params.items()}
    adam_v = {k: np.zeros_like(v) for k, v in params.items()}
    averages, path = np.zeros(3), []
    decays = np.asarray([0.5, 0.9, 0.98])

    def rms(x):
        return math.sqrt(np.mean(np.square(x)))

    for t in range(STEPS):
        averages = decays * averages + (1 - decays) * losses[t]
        corrected = averages / (1 - decays ** (t + 1))
        centres = np.asarray([0.1, 0.4, 0.7, 1.0])
        common = np.concatenate(
            [
                np.tanh(4 * (min(t / num_steps, 1.0) - centres)),
                np.log(np.clip(corrected, 1e-6, 1e6)),
            ]
        )
        for k in params:
            g, p = grads[k][t], params[k]
            inputs = common
            if per_layer:
                sizes = np.asarray([rms(g), rms(p), np.max(np.abs(g))])
                norms = 0.3 * np.log(1e-6 + sizes)
                embedding = theta["embedding"][names.index(k)]
                inputs = np.concatenate([embedding, norms, common])
            hidden = inputs @ theta["hidden"]["w"] + theta["hidden"]["b"]
            out = np.maximum(hidden, 0) @ theta["output"]["w"] + theta["output"]["b"]
            mix = np.exp(out[:2]) / np.sum(np.exp(out[:2]))
            rate = 3e-3 * math.exp(np.clip(3 * out[2], -6, 4))
            adam_m[k] = 0.9 * adam_m[k] + 0.1 * g
            adam_v[k] = 0.999 * adam_v[k] + 0.001 * g**2
            m, v = adam_m[k] / (1 - 0.9 ** (t + 1)), adam_v[k] / (1 - 0.999 ** (t + 1))
            adam = m / (np.sqrt(v) + 1e-8)
            # The bias correction of the other momentum does not survive its norm.
            momentum = adam_m[k] / (rms(adam_m[k]) + 1e-12)
            params[k] = p - rate * (mix[0] * adam + mix[1] * momentum)
        path.append(dict(params))
    return path


@pytest.mark.parametrize("per_layer", [True, False])
@pytest.mark.parametrize("num_steps", [STEPS, 2])
def test_against_numpy(per_layer, num_steps):
    """Also beyond the horizon, with a negative loss, and in the ablation."""
    params, grads, losses = made_up()
    tensors = l3rs.tensors_of(params)
    rule = lopax.architecture("l3rs", tensors=tensors, layer_inputs=per_layer)
    theta = theta_of(rule)
    assert ("embedding" in theta) == per_layer
    got = run(rule, theta, params, grads, losses, num_steps)
    want = numpy_l3rs(theta, tensors, params, grads, losses, per_layer, num_steps)
    start = trees.named_leaves(params)
    for t in range(STEPS):
        for name, expected in want[t].items():
            moved = np.max(np.abs(expected - start[name]))
            assert moved > 1e-4
            error = np.max(np.abs(np.asarray(got[t][name]) - expected))
            assert error < 2e-4 * moved + 3e-7, (t, name)


def test_it_starts_as_a_sane_step():
    """Zero output weights: the mean of the two directions at the set rate."""
    params, grads, losses = made_up()
    rule: Any = lopax.architecture("l3rs", tensors=l3rs.tensors_of(params))
    theta = rule.init_theta(jax.random.key(0))
    first = run(rule, theta, params, grads, losses)[0]
    g = grads["dense"]["w"][0]
    direction = 0.5 * np.sign(g) + 0.5 * g / math.sqrt(np.mean(g**2))
    want = params["dense"]["w"] - 3e-3 * direction
    np.testing.assert_allclose(first["dense/w"], want, atol=2e-6)


def test_other_networks_are_refused():
    params, *_ = made_up()
    rule: Any = lopax.architecture("l3rs", tensors=l3rs.tensors_of(params))
    theta = rule.init_theta(jax.random.key(0))
    rule.init(theta, params, 10)
    deeper = {**params, "extra": {"b": np.zeros(3)}}
    with pytest.raises(StructureMismatch, match="extra/b: expected nothing, found"):
        rule.init(theta, deeper, 10)
    wider = {**params, "dense": {"w": np.zeros((4, 5)), "b": np.zeros(5)}}
    with pytest.raises(StructureMismatch) as caught:
        rule.init(theta, wider, 10)
    message = str(caught.value)
    assert "dense/w: expected [4,3], found [4,5]" in message
    assert "head/w" not in message and "tensors_of(params)" in message
    # The same through the drop-in optimizer.
    opt = lopax.optimizer(
        "l3rs", theta=theta, num_steps=10, tensors=rule.config.tensors
    )
    opt.init(params)
    with pytest.raises(StructureMismatch, match="Meta-train it"):
        opt.init({"w": np.zeros(3)})
    # A question about its state is no question about a network.
    with pytest.raises(ConfigError, match="no momenta of its own"):
        lopax.optimizer(
            "l3rs",
            theta=theta,
            num_steps=10,
            tensors=rule.config.tensors,
            momentum_dtype="bfloat16",
        )
    # And theta for another number of tensors.
    other = lopax.architecture("l3rs", tensors=l3rs.tensors_of(deeper))
    with pytest.raises(StructureMismatch, match="embedding"):
        other.theta_from_arrays(rule.theta_to_arrays(theta))


def test_sizes_may_be_left_open():
    """A head for another number of classes, but no other rank and no other layer."""
    params, *_ = made_up()
    tensors = l3rs.tensors_of(params, any_size=("head/*",))
    assert "head/w:?,?" in tensors and "head/scale:" in tensors
    rule = lopax.architecture("l3rs", tensors=tensors)
    theta = rule.init_theta(jax.random.key(0))
    head = {"w": np.zeros((3, 7)), "scale": np.zeros(())}
    rule.init(theta, {**params, "head": head}, 10)
    with pytest.raises(StructureMismatch, match=re.escape("head/scale: expected []")):
        rule.init(theta, {**params, "head": {**head, "scale": np.zeros(2)}}, 10)


def test_embeddings_go_by_name_not_by_place():
    """A flat tree of the same names has another order of leaves."""
    params = {"a": {"w": jnp.ones(3)}, "a-b": {"w": jnp.ones(3)}}
    flat = {"a-b/w": jnp.ones(3), "a/w": jnp.ones(3)}
    assert list(trees.named_leaves(params)) != list(trees.named_leaves(flat))
    rule: Any = lopax.architecture("l3rs", tensors=l3rs.tensors_of(params))
    theta = theta_of(rule)
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    moved = []
    for tree, grad in ((params, grads), (flat, jax.tree.map(lambda p: 0.1 * p, flat))):
        state = rule.init(theta, tree, 10)
        updates, _, _ = rule.update(theta, grad, state, tree, value=1.0)
        moved.append(trees.named_leaves(updates))
    assert not np.allclose(moved[0]["a/w"], moved[0]["a-b/w"], rtol=1e-3)
    for name, update in moved[0].items():
        np.testing.assert_allclose(update, moved[1][name], rtol=1e-6)


def test_without_a_declared_network_any_will_do():
    params, grads, losses = made_up()
    rule = lopax.architecture("l3rs")
    theta = theta_of(rule)
    assert trees.count_elements(theta) == 451
    assert np.isfinite(run(rule, theta, params, grads, losses)[-1]["head/w"]).all()
    six = {f"layer{i}": np.zeros((2, 2)) for i in range(6)}
    tied = lopax.architecture("l3rs", tensors=l3rs.tensors_of(six))
    assert trees.count_elements(tied.init_theta(jax.random.key(0))) == 755


def test_directions_are_any_optax_transformation(monkeypatch):
    """One direction of one's own: the rule is it, times the learned rate."""
    monkeypatch.setitem(
        DIRECTIONS._entries, "doubled", lambda by: optax.scale(2.0 * by)
    )
    params, grads, losses = made_up()
    own = {"name": "doubled", "settings": {"by": 3.0}}
    for unit in (False, True):
        rule = lopax.architecture("l3rs", directions=[{**own, "unit_rms": unit}])
        theta = rule.init_theta(jax.random.key(0))
        assert theta["output"]["b"].shape == (2,)
        first = run(rule, theta, params, grads, losses)[0]
        g = grads["dense"]["w"][0]
        scale = 1.0 / math.sqrt(np.mean(g**2)) if unit else 6.0
        want = params["dense"]["w"] - 3e-3 * scale * g
        np.testing.assert_allclose(first["dense/w"], want, atol=1e-6)
    with pytest.raises(UnknownName, match="did you mean 'adam'"):
        lopax.architecture("l3rs", directions=[{"name": "adamm"}])


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_every_direction_descends(name):
    directions = [
        {"name": name, "settings": {"decay": 0.9} if name == "momentum" else {}}
    ]
    rule = lopax.architecture("l3rs", directions=directions, weighting="linear")
    theta = rule.init_theta(jax.random.key(0))
    params = {"w": jnp.asarray([1.0, -2.0])}
    state = rule.init(theta, params, 50)

    @jax.jit
    def step(params, state):
        loss, grad = jax.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(params)
        updates, state, _ = rule.update(theta, grad, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    assert float(jnp.sum(params["w"] ** 2)) < 4.99


def test_linear_weights_may_be_negative():
    params, grads, losses = made_up()
    tensors = l3rs.tensors_of(params)
    both = [
        lopax.architecture("l3rs", tensors=tensors, weighting=w)
        for w in l3rs.WEIGHTINGS
    ]
    theta = both[0].init_theta(jax.random.key(0))
    same = [run(rule, theta, params, grads, losses)[0]["dense/w"] for rule in both]
    np.testing.assert_allclose(same[0], same[1], rtol=1e-6)
    theta["output"]["b"] = jnp.asarray([-1.5, -1.5, 0.0])
    uphill = run(both[1], theta, params, grads, losses)[0]["dense/w"]
    start = params["dense"]["w"]
    assert np.sum((np.asarray(uphill) - start) * (np.asarray(same[0]) - start)) < 0
