"""Tools for recurrent rules, on systems whose answer is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_jit

from lopax import analysis
from lopax._core.errors import ConfigError, NotApplicable
from lopax._core.task import SingleTask
from lopax.analysis import RecurrentView
from lopax.architectures import architecture
from lopax.architectures.described import XP
from lopax.tasks import Quadratic, RotatedQuadratics

RULES = {
    "l2o_gru": {"units": 5},
    "l2o_lstm": {"lstm": 3},
    "learned_sgd": {},
    "optim4rl": {"units": 3},
    "linear_optim": {"units": 3},
    "l2lgd2": {"units": 3},
}


def random_theta(rule, seed: int = 0):
    """Away from special starting points (a readout of zeros)."""
    leaves, treedef = jax.tree.flatten(rule.init_theta(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return treedef.unflatten(
        [
            x + 0.2 * jax.random.normal(k, x.shape)
            for k, x in zip(keys, leaves, strict=True)
        ]
    )


@pytest.mark.parametrize("alpha, beta", [(3.76, 0.881), (0.1, 0.99), (1e-3, 0.5)])
def test_a_true_momentum_rule_is_recovered(alpha: float, beta: float):
    view = analysis.momentum_view(alpha, beta)
    starts = np.linspace(-2.0, 2.0, 9, dtype=np.float32)[:, None]
    points = analysis.find_fixed_points(view, starts, steps=4_000)
    assert len(points.states) == 1 and abs(points.states[0, 0]) < 1e-2
    found = analysis.modes(analysis.linearise(view, points.states[0]))
    np.testing.assert_allclose(found.betas, [beta], atol=1e-5)
    np.testing.assert_allclose(found.alphas, [alpha], rtol=1e-5)
    np.testing.assert_allclose(
        found.response(20), -alpha * beta ** np.arange(20), rtol=1e-4
    )


def test_momentum_is_recovered_through_the_learned_rule_that_is_one():
    rule: Any = architecture("learned_sgd", learning_rate=0.3, momentum=0.95)
    view = analysis.recurrent_view(rule, rule.init_theta(jax.random.key(0)))
    found = analysis.modes(analysis.linearise(view, np.zeros(1)))
    np.testing.assert_allclose(found.betas, [0.95], atol=1e-5)
    np.testing.assert_allclose(found.alphas, [0.3], rtol=1e-5)


def test_mixed_momentum_terms_come_apart():
    """Four terms, two of them a complex pair, behind an ill-conditioned mixing."""
    rng = np.random.default_rng(0)
    angle = 0.4
    block = 0.9 * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    inner = np.zeros((4, 4))
    inner[0, 0], inner[1, 1], inner[2:, 2:] = 0.97, 0.3, block
    mixing = rng.normal(size=(4, 4)) @ np.diag([1.0, 1.0, 0.2, 0.1])
    jacobian = (mixing @ inner @ np.linalg.inv(mixing)).astype(np.float32)
    given, readout = rng.normal(size=(2, 4)).astype(np.float32)
    view = RecurrentView(
        jnp.zeros(4),
        lambda h, g: jnp.asarray(jacobian) @ h + jnp.asarray(given) * g,
        lambda h: jnp.asarray(readout) @ h,
    )
    found = analysis.modes(analysis.linearise(view, np.zeros(4)))
    expected = np.array([0.97, 0.3, 0.9 * np.exp(0.4j), 0.9 * np.exp(-0.4j)])
    np.testing.assert_allclose(
        np.sort_complex(found.betas), np.sort_complex(expected), atol=1e-5
    )
    np.testing.assert_allclose(found.real_betas(0.9, 1.0), [0.97], atol=1e-5)
    h, steps = np.zeros(4), []
    for k in range(12):
        h = jacobian.astype(float) @ h + given * (k == 0)
        steps.append(readout @ h)
    np.testing.assert_allclose(found.response(12), steps, atol=1e-4)
    assert np.all(np.diff(found.weights) <= 1e-9)


def test_constants_of_the_theory():
    best = analysis.heavy_ball_optimum(1e-3, 1.0)
    assert best.alpha == pytest.approx(3.76, abs=0.01)
    assert best.beta == pytest.approx(0.881, abs=0.001)
    assert analysis.gradient_descent_optimum(1e-3, 1.0) == pytest.approx(2 / 1.001)
    with pytest.raises(ConfigError, match="0 < low <= high"):
        analysis.heavy_ball_optimum(0.0, 1.0)


@pytest.mark.parametrize("name", RULES)
def test_views_make_the_steps_of_their_architecture(name: str):
    rule: Any = architecture(name, **RULES[name])
    theta = random_theta(rule)
    view = analysis.recurrent_view(rule, theta)
    grads = jnp.asarray([0.3, -1.2, 0.0, 2.5, 1e-6, -0.7])

    @quick_jit
    def own(theta, grads):
        params = {"x": jnp.ones(())}

        def step(state, g):
            updates, state, _ = rule.update(theta, {"x": g}, state, params)
            return state, updates["x"]

        return jax.lax.scan(step, rule.init(theta, params), grads)[1]

    @quick_jit
    def viewed(grads):
        def step(h, g):
            h = view.transition(h, g)
            return h, view.readout(h)

        return jax.lax.scan(step, view.initial, grads)[1]

    expected = own(theta, grads)
    np.testing.assert_allclose(viewed(grads), expected, rtol=2e-5, atol=1e-8)
    assert np.abs(expected).max() > 0
    slope = jax.grad(lambda g: view.update(view.initial, g))(0.3)
    assert slope != 0  # the architectures themselves detach their gradients


def test_the_gru_against_its_formula():
    """Two steps in NumPy, gates spelled out."""
    rule: Any = architecture("l2o_gru", units=4, step_mult=0.5, input_mult=2.0)
    theta = random_theta(rule, 3)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), theta)

    def sigmoid(x):
        return 1.0 / (1.0 + np.exp(-x))

    h, expected = p["initial"], []
    for g in (0.4, -1.1):
        x, k = 2.0 * g, h @ p["gru"]["wh"]
        a = x * p["gru"]["wx"][0] + p["gru"]["bx"]
        r, z = sigmoid(a[:4] + k[:4]), sigmoid(a[4:8] + k[4:8])
        n = np.tanh(a[8:] + r * (k[8:] + p["gru"]["bh"]))
        h = (1 - z) * n + z * h
        expected.append(0.5 * (h @ p["head"]["w"][:, 0] + p["head"]["b"][0]))
    params, state = {"x": jnp.zeros(3)}, rule.init(theta, {"x": jnp.zeros(3)})
    found = []
    for g in (0.4, -1.1):
        updates, state, _ = rule.update(theta, {"x": jnp.full(3, g)}, state, params)
        found.append(updates["x"])
    np.testing.assert_allclose(
        found, np.repeat(np.array(expected)[:, None], 3, 1), 1e-5
    )
    fresh = rule.init_theta(jax.random.key(0))
    assert not np.any(rule.update(fresh, {"x": jnp.ones(3)}, state, params)[0]["x"])


def test_logarithmic_inputs():
    rule: Any = architecture("l2o_gru", units=3, inputs="log")
    assert rule.init_theta(jax.random.key(0))["gru"]["wx"].shape == (2, 9)
    np.testing.assert_allclose(
        rule.rule.signal(XP, jnp.asarray([-3.0])), [[np.log(4.0), -1.0]], rtol=1e-6
    )
    with pytest.raises(ConfigError, match="must be one of 'raw', 'log'"):
        architecture("l2o_gru", inputs="square")


def clipping_view(bound: float) -> RecurrentView:
    """Gradient descent at rate 0.2 that clips; the state is the last gradient."""
    return RecurrentView(
        jnp.zeros(1),
        lambda h, g: g[None],
        lambda h: -0.2 * jnp.clip(h[0], -bound, bound),
    )


def test_clipping_is_found():
    grid = np.linspace(-4, 4, 81)
    curve = analysis.update_function(clipping_view(1.0), np.zeros((2, 1)), grid)
    assert curve.updates.shape == (2, 81)
    np.testing.assert_allclose(curve.rates, 0.2, rtol=1e-6)
    np.testing.assert_allclose(curve.updates[0], -0.2 * np.clip(grid, -1, 1), atol=1e-6)
    assert analysis.knee(curve) == pytest.approx(1.0, abs=0.21)
    assert analysis.saturation(clipping_view(1.0), np.zeros(1)) == pytest.approx(1.0)
    assert analysis.share_beyond(np.array([-3.0, 0.1, 0.2, 2.0]), 1.0) == 0.5
    linear = analysis.momentum_view(0.1, 0.9)
    assert analysis.saturation(linear, np.zeros(1)) == pytest.approx(2.0, rel=1e-5)
    straight = analysis.update_function(linear, np.zeros((1, 1)), grid)
    assert analysis.knee(straight) == np.inf


def test_a_schedule_without_input_is_found():
    """Rate 1 + s with s halved every step, and a drift of s / 10."""
    view = RecurrentView(
        jnp.asarray([1.0, 0.0]),
        lambda h, g: jnp.stack([0.5 * h[0], g]),
        lambda h: -(1.0 + h[0]) * h[1] + 0.1 * h[0],
    )
    found = analysis.implicit_schedule(view, 10)
    decayed = 0.5 ** np.arange(1, 11)
    np.testing.assert_allclose(found.rates, 1.0 + decayed, rtol=1e-6)
    np.testing.assert_allclose(found.drift, 0.1 * decayed, rtol=1e-6)
    np.testing.assert_allclose(found.states[:2, 0], [1.0, 0.5])


def test_dimensions_of_the_state():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    coordinates = rng.normal(size=(40, 50, 2)) * [3.0, 1.0]
    pca = analysis.state_pca(coordinates @ basis[:2] + 5.0)
    np.testing.assert_allclose(pca.explained[:2], [0.9, 0.1], atol=0.02)
    assert pca.dimensions(0.99) == 2 and pca.dimensions(0.5) == 1
    assert abs(pca.components[0] @ basis[0]) == pytest.approx(1.0, abs=1e-2)
    found = pca.project(coordinates @ basis[:2] + 5.0)
    np.testing.assert_allclose(found.var(axis=(0, 1)), [9.0, 1.0], rtol=0.1)
    with pytest.raises(ConfigError, match="all states are the same"):
        analysis.state_pca(np.ones((5, 3)))
    with pytest.raises(ConfigError, match="at least two"):
        analysis.state_pca(np.ones((1, 3)))


def test_all_resting_points_of_a_bistable_state():
    view = RecurrentView(
        jnp.zeros(1), lambda h, g: jnp.tanh(2.0 * h + g), lambda h: -h[0]
    )
    starts = np.linspace(-1.5, 1.5, 13, dtype=np.float32)[:, None]
    points = analysis.find_fixed_points(view, starts, tolerance=1e-9)
    np.testing.assert_allclose(
        np.sort(points.states[:, 0]), [-0.9575, 0.0, 0.9575], atol=1e-3
    )
    assert np.all(np.diff(points.speeds) >= 0)
    pushed = analysis.find_fixed_points(view, starts, 3.0)
    np.testing.assert_allclose(pushed.states[:, 0], [np.tanh(2 * 0.99987 + 3)], 1e-3)
    restless = RecurrentView(jnp.zeros(1), lambda h, g: h + 1.0, lambda h: h[0])
    assert not len(analysis.find_fixed_points(restless, starts, steps=50).states)


def test_adaptation_of_rmsprop_is_seen():
    """At rest under g the step is -sign(g) and the slope 0.9 / |g|."""

    def transition(h, g):
        return jnp.stack([0.9 * h[0] + 0.1 * g**2, g])

    view = RecurrentView(
        jnp.zeros(2), transition, lambda h: -h[1] * jax.lax.rsqrt(h[0] + 1e-12)
    )
    grid = np.array([-4.0, -1.0, -0.25, 0.25, 1.0, 4.0])
    found = analysis.adaptation_curve(view, grid, steps=300)
    assert found.rests().all()
    np.testing.assert_allclose(found.updates, -np.sign(grid), rtol=1e-3)
    np.testing.assert_allclose(found.rates, 0.9 / np.abs(grid), rtol=1e-3)
    plain = analysis.adaptation_curve(analysis.momentum_view(0.1, 0.5), grid, steps=100)
    np.testing.assert_allclose(plain.rates, 0.1, rtol=1e-4)
    np.testing.assert_allclose(plain.states[:, 0], 2.0 * grid, rtol=1e-4)
    wild = analysis.adaptation_curve(analysis.momentum_view(0.1, 1.5), grid, steps=20)
    assert not wild.rests().any()


def test_visited_states_are_those_of_training():
    """Gradient descent on a bowl: every coordinate shrinks by 1 - rate / n a step."""
    family = SingleTask(Quadratic(dimension=4, condition=1.0))
    visited = analysis.visit(
        analysis.momentum_view(0.4, 0.0), family, jax.random.key(0), problems=3, steps=6
    )
    assert visited.states.shape == (3, 6, 4, 1)
    np.testing.assert_allclose(visited.grads[:, 1:], 0.9 * visited.grads[:, :-1], 1e-5)
    np.testing.assert_allclose(visited.updates, -0.4 * visited.grads, rtol=1e-6)
    np.testing.assert_allclose(visited.states[..., 0], visited.grads, rtol=1e-6)
    assert np.all(np.diff(visited.losses, axis=1) < 0)
    few = analysis.visit(
        analysis.momentum_view(0.4, 0.0),
        family,
        jax.random.key(0),
        problems=2,
        steps=3,
        coordinates=2,
    )
    assert few.grads.shape == (2, 3, 2)


def test_rotated_quadratics_are_what_they_say():
    family = RotatedQuadratics()
    problem = family.sample(jax.random.key(3))
    hessian = np.asarray(problem.hessian, np.float64)
    values = np.linalg.eigvalsh(hessian)
    assert np.all(values > 0.9e-3) and np.all(values < 1.001)
    assert np.abs(hessian - np.diag(np.diag(hessian))).max() > 1e-2
    task = family.task(problem)
    params, _ = task.init(jax.random.key(0))
    loss, grads, _ = task.value_and_grad(params, None, jax.random.key(0))
    assert float(task.normalize(loss)) == pytest.approx(1.0)
    np.testing.assert_allclose(
        grads["x"], hessian @ np.asarray(params["x"]) + problem.linear, rtol=1e-4
    )
    bottom = -np.linalg.solve(hessian, np.asarray(problem.linear, np.float64))
    lowest = float(task.value(jnp.asarray(bottom, jnp.float32)))
    assert abs(lowest) < 1e-4 * float(problem.offset + 1.0)
    assert float(task.normalize(jnp.asarray(jnp.nan))) == task.loss_bound
    other = family.sample(jax.random.key(4))
    assert not np.allclose(other.hessian, problem.hessian)
    with pytest.raises(ConfigError, match="low"):
        RotatedQuadratics(low=0.0)


def test_other_architectures_are_refused_with_what_would_work():
    rule: Any = architecture("celo_adam")
    with pytest.raises(NotApplicable, match=r"l2o_gru.*compare_directions") as refused:
        analysis.recurrent_view(rule, rule.init_theta(jax.random.key(0)))
    assert "'celo_adam'" in str(refused.value)
    assert analysis.is_recurrent(architecture("l2o_gru"))
    assert not analysis.is_recurrent(rule)
