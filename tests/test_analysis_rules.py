"""Tools for any rule, per-element networks and schedulers, on rules whose answer is
known."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_jit

from lopax import analysis, tasks
from lopax._core.errors import NotApplicable
from lopax.analysis import running
from lopax.analysis.directions import REFERENCES
from lopax.architectures import architecture
from lopax.nets import dense_mlp

TASK = {"hidden": (6,), "batch_size": 16}


@functools.cache
def task():
    return tasks.task("digits_mlp_32", **TASK)


@pytest.fixture(autouse=True)
def _compact_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_mlp, "UNROLLED_UP_TO", 0)


def only_channel(rule, channel: int, gain: float = 10.0):
    """Meta-parameters with which the network passes on one channel."""
    theta = jax.tree.map(jnp.zeros_like, rule.init_theta(jax.random.key(0)))
    net = theta["rule"]
    net["w0"] = net["w0"].at[channel, 0].set(1.0).at[channel, 1].set(-1.0)
    net["w1"] = net["w1"].at[0, 0].set(1.0).at[1, 1].set(1.0)
    net["w2"] = net["w2"].at[0, 0].set(gain).at[1, 0].set(-gain)
    return theta


ADAM = 7  # the first of the channels "adam": momentum 0.9 over root second moment


def test_only_the_input_that_is_used_is_important():
    rule: Any = architecture("celo2_base")
    found = analysis.feature_importance(
        rule, only_channel(rule, ADAM), task(), num_steps=30, seeds=(0, 1)
    )
    names = [g.name for g in found.groups]
    used = names.index("adam")
    others = [i for i in range(len(names)) if i != used]
    assert np.all(found.changed[others] < 1e-6)
    assert np.all(found.turned[others] < 1e-5)
    for ratio in (found.loss_ratio, found.mean_ratio):
        np.testing.assert_allclose(ratio[others], 1.0, rtol=1e-5)
        assert ratio[used] > 1.02
    assert found.changed[used] > 0.9
    assert found.means.shape == (30,) and np.all(np.abs(found.means) <= 1.0)
    second = found.groups[names.index("second")].start
    assert found.means[second] > 0.1  # squares have a positive mean


def test_a_group_is_replaced_by_its_mean():
    """A constant input changes nothing when it is replaced."""
    rule: Any = architecture("celo")
    net = analysis.element_net(rule)
    theta = rule.init_theta(jax.random.key(1))
    group = net.inputs[3]
    means = jnp.arange(30.0)
    changed = net.without(theta, group, means)
    x = jnp.arange(30.0)  # all inputs at their means
    before = x @ theta["rule"]["w0"] + theta["rule"]["b0"]
    after = x @ changed["rule"]["w0"] + changed["rule"]["b0"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    rows = slice(group.start, group.start + group.channels)
    assert not np.any(changed["rule"]["w0"][rows])
    assert [g.start for g in net.inputs][:4] == [0, 1, 2, 3] and net.num_inputs == 30


@pytest.mark.parametrize(
    "name", ["celo", "celo2", "velo", "adafac_mlp", "star", "mulo"]
)
def test_every_per_element_network_is_described(name: str):
    settings = {"velo": {"lstm": 4, "bank": 2}, "mulo": {"hidden": 4}}.get(name, {})
    rule: Any = architecture(name, **settings)
    theta = rule.init_theta(jax.random.key(0))
    net = analysis.element_net(rule)
    assert theta[net.key]["w0"].shape[-2] == net.num_inputs
    assert net.weight_sizes(theta).shape == (len(net.inputs),)
    assert len(net.inputs) == (13 if net.timed else 14)
    changed = net.without(theta, net.inputs[-1], jnp.ones(net.num_inputs))
    rule.theta_from_arrays(rule.theta_to_arrays(changed))  # still a theta of it


@pytest.mark.parametrize("name", ["celo2", "adafac_mlp"])
def test_means_are_those_of_the_inputs(name: str):
    """Moments after constant gradients are known: the normalised gradient is one."""
    rule: Any = architecture(name)
    theta = rule.init_theta(jax.random.key(0))
    params = {"b": jnp.ones(3), "w": jnp.ones((4, 3))}
    grads = jax.tree.map(lambda x: 200.0 * x, params)
    _, state, _ = quick_jit(rule.update)(theta, grads, rule.init(theta, params), params)
    tensors = jax.tree.structure(params).flatten_up_to(state.tensors)
    net = analysis.element_net(rule)
    found = net.means(
        [grads["b"], grads["w"]], [params["b"], params["w"]], tensors, jnp.asarray(0)
    )
    starts = {g.name: g.start for g in net.inputs}
    for group in ("grad", "param", "momenta", "second"):
        np.testing.assert_allclose(found[starts[group]], 1.0, rtol=1e-3)
    if net.timed:
        np.testing.assert_allclose(found[starts["time"] :], np.tanh(-1.0), rtol=1e-5)


def test_networks_without_named_inputs_are_refused():
    rule: Any = architecture("celo_adam")
    with pytest.raises(NotApplicable, match=r"adafac_mlp.*compare_directions"):
        analysis.element_net(rule)
    assert not analysis.has_element_net(rule)


def cosine_with(name: str, rule, theta, steps: int = 12):
    found = analysis.compare_directions(rule, theta, task(), num_steps=steps)
    return found.cosines[:, :, REFERENCES.index(name)], found


def test_adam_goes_where_adam_goes():
    rule: Any = architecture("learned_adam")
    theta = rule.init_theta(jax.random.key(0))
    cosines, found = cosine_with("Adam", rule, theta)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-4)
    assert found.mean().shape == (len(found.names), len(REFERENCES))
    muon = found.cosines[:, :, REFERENCES.index("Muon")]
    matrices = np.array([len(s) == 2 for s in found.shapes])
    assert np.isnan(muon[:, ~matrices]).all() and np.all(muon[:, matrices] > 0.2)
    plain = found.cosines[:, :, REFERENCES.index("gradient")]
    assert np.all(plain[1:] < 0.999)


def test_gradient_descent_goes_down_the_gradient():
    rule: Any = architecture("learned_sgd", learning_rate=0.1, momentum=0.0)
    theta = rule.init_theta(jax.random.key(0))
    cosines, found = cosine_with("gradient", rule, theta, 20)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-5)
    first = dict(zip(REFERENCES, found.cosines[0].T, strict=True))
    np.testing.assert_allclose(first["momentum"], 1.0, atol=1e-5)
    for name in ("sign of momentum", "Adam"):  # both are the gradient's sign at first
        np.testing.assert_allclose(first[name], first["sign-SGD"], atol=1e-2)
    assert found.inward[REFERENCES.index("weight decay")] == pytest.approx(1.0)
    assert abs(found.inward[REFERENCES.index("gradient")]) < 0.5
    assert found.losses[-3:].mean() < found.losses[0]
    np.testing.assert_allclose(found.scales, 0.1, rtol=1e-6)
    assert np.all(found.moved > 0) and np.all(found.moved < 0.5)


def test_a_linear_rule_answers_linearly_and_adam_does_not():
    sgd = architecture("learned_sgd")
    theta = sgd.init_theta(jax.random.key(0))
    found = analysis.gradient_response(sgd, theta, task(), num_steps=20, elements=3)
    assert found.updates.shape == (3, 61)
    assert found.flattening() == pytest.approx(3.0, rel=1e-3)
    change = found.change()
    assert change[-1] < 0 < change[0]
    np.testing.assert_allclose(change, -change[::-1], rtol=1e-3, atol=1e-6)
    sign = architecture("learned_adam", b1=0.0, b2=0.0)
    theta = sign.init_theta(jax.random.key(0))
    found = analysis.gradient_response(sign, theta, task(), num_steps=20, elements=3)
    assert found.flattening() == pytest.approx(1.0, abs=1e-2)


def test_exponents_of_rescaling():
    sgd = architecture("learned_sgd")
    found = analysis.invariances(
        sgd, sgd.init_theta(jax.random.key(0)), task(), num_steps=8, replayed=5
    )
    assert found.exponent("gradients") == pytest.approx(1.0, abs=1e-3)
    assert found.exponent("parameters") == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(found.cosines["gradients"], 1.0, atol=1e-5)
    rule: Any = architecture("celo", phase=1)
    theta = only_channel(rule, ADAM)
    found = analysis.invariances(rule, theta, task(), num_steps=8, replayed=5)
    assert found.exponent("parameters") == pytest.approx(1.0, abs=0.02)
    assert found.exponent("loss") == 0.0
    assert abs(found.exponent("gradients")) < 0.3


def test_scheduler_alone_is_the_scheduler_in_the_rule():
    rule: Any = architecture("celo_adam", lstm=20)
    theta = rule.init_theta(jax.random.key(2))
    losses = np.array([2.0, 1.8, 1.9, 1.2, 1.0, 0.9, 1.1, 0.7], np.float32)
    alone = rule.config.step_mult * analysis.multipliers(rule, theta, losses)
    params = {"x": jnp.ones(2)}
    state, scales = rule.init(theta, params, len(losses)), []
    update = jax.jit(rule.update)
    for loss in losses:
        _, state, info = update(theta, params, state, params, value=loss)
        scales.append(info.step_scale)
    np.testing.assert_allclose(alone, scales, rtol=1e-5)


def test_a_schedule_that_only_knows_time_ignores_the_loss():
    rule: Any = architecture("celo_adam", lstm=20, start="falling")
    theta = rule.init_theta(jax.random.key(0))
    theta["scheduler"]["head"]["w"] = (
        theta["scheduler"]["head"]["w"].at[9:].set(0.0)  # all units but those of time
    )
    curves = [
        analysis.multipliers(rule, theta, x)
        for x in analysis.typical_losses(200).values()
    ]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-5)
    assert curves[0][0] == pytest.approx(5.0, rel=0.2)
    assert curves[0][-1] == pytest.approx(0.05, rel=0.3)
    answers = analysis.loss_step_response(rule, theta, (0.5, 1.0, 2.0), num_steps=100)
    np.testing.assert_allclose(answers, 1.0, rtol=1e-5)
    listening = rule.init_theta(jax.random.key(0))
    moved = analysis.loss_step_response(rule, listening, (0.25, 4.0), num_steps=100)
    assert np.abs(np.log(moved)).max() > 1e-4


def test_rules_without_a_scheduler_are_refused():
    for rule in (architecture("celo", phase=1), architecture("celo2")):
        assert not analysis.has_scheduler(rule)
        with pytest.raises(NotApplicable, match="celo_adam"):
            analysis.multipliers(rule, {}, np.ones(3))
    assert analysis.has_scheduler(architecture("celo"))


def test_a_moment_is_one_of_the_recorded_run():
    rule: Any = architecture("learned_adam")
    theta = rule.init_theta(jax.random.key(0))
    run = running.record(rule, theta, task(), 6, seed=3)
    moment = running.moment_after(rule, theta, task(), 4, 6, seed=3)
    np.testing.assert_allclose(moment.loss, run.losses[4], rtol=1e-4)
    curves = running.losses(rule, running.stack([theta, theta]), task(), 6, (3, 4))
    assert curves.shape == (2, 2, 6)
    np.testing.assert_allclose(curves[0, 0], run.losses, rtol=1e-4)
    np.testing.assert_array_equal(curves[0], curves[1])
    assert np.abs(curves[0, 0] - curves[0, 1]).max() > 1e-3
