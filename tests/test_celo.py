"""Celo and Celo-Adam against the published implementation's numbers, against a slow
reference, and in the corners."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_celo
from rule_table import jax_backends
from shared_files import golden, part, shared

from lopax._core.errors import ConfigError, StructureMismatch, UnknownName
from lopax._core.tree import count_elements
from lopax.architectures import architecture, config_of
from lopax.architectures.described import XP
from lopax.native import xla
from lopax.rules import loss_history
from lopax.theta import bundled_weights, load_optimizer, load_theta

CASES = {
    "celo": ("celo", {}),
    "celo_phase1": ("celo", {"phase": 1}),
    "celo_random": ("celo", {}),
    "celo_adam": ("celo_adam", {}),
    "celo_adam_random": ("celo_adam", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_golden_files(case: str):
    file = golden(case)
    name, config = CASES[case]
    for backend in jax_backends(name):
        rule = architecture(name, **config, **backend)
        theta = rule.theta_from_arrays(part(file, "theta"))
        params = {k: jnp.asarray(v) for k, v in part(file, "params").items()}
        grads, expected = part(file, "grads"), part(file, "expected")
        state = rule.init(theta, params, int(file["num_steps"]))
        update = jax.jit(rule.update)
        for t, loss in enumerate(file["loss"]):
            g = {k: grads[k][t] for k in params}
            updates, state, _ = update(theta, g, state, params, value=loss)
            params = jax.tree.map(jnp.add, params, updates)
            for k, p in params.items():
                error = np.max(np.abs(p - expected[k][t]))
                assert error <= 1e-5 * np.max(np.abs(expected[k][t])), (k, t, backend)


# research table: sums of the tensors a, b, c, d after n updates, num_steps = 100
TABLE = {
    ("celo", 2): {
        1: (0.45409676, 0.36049312, 0.04983942, 2.63699150),
        3: (0.45310560, 0.36274713, 0.05132886, 2.62231040),
        10: (0.47061637, 0.35596257, 0.05484252, 2.57340455),
        50: (0.44712675, 0.34942323, 0.05370660, 2.31890678),
    },
    ("celo", 1): {
        1: (0.45292416, 0.36059499, 0.05019991, 2.63406467),
        2: (0.45238850, 0.36094630, 0.05087344, 2.62783909),
    },
    ("celo_adam", None): {
        1: (0.45472458, 0.36041191, 0.04970558, 2.63871074),
        10: (0.45899889, 0.36090440, 0.05253165, 2.63597989),
        50: (0.48223987, 0.34742329, 0.04915410, 2.63604856),
    },
}
LR_MULT = {1: 0.44360143, 2: 0.91286014, 3: 1.29831627, 10: 1.99877291, 50: 1.72637818}


@pytest.mark.parametrize("case", TABLE)
def test_published_weights_give_the_published_table(case: tuple):
    name, phase = case
    rule = architecture(name, **({"phase": phase} if phase else {}))
    theta = load_theta(shared("weights", name, "theta.state"), name)
    shapes = {"a": (3, 4), "b": (4,), "c": (), "d": (2, 3, 5, 4)}
    sizes = {k: int(np.prod(s)) for k, s in shapes.items()}
    params = {
        k: jnp.asarray(0.1 * np.sin(0.7 * np.arange(sizes[k]) + 0.3) + 0.02, "float32")
        .reshape(s)
        for k, s in shapes.items()
    }  # fmt: skip
    state, update = rule.init(theta, params, 100), jax.jit(rule.update)
    for t in range(max(TABLE[case])):
        grads = {
            k: np.float32(0.05 * np.cos(1.3 * np.arange(sizes[k]) + 0.5 * t + q))
            .reshape(s)
            for q, (k, s) in enumerate(shapes.items())
        }  # fmt: skip
        loss = 2.0 * np.exp(-0.1 * t) + 0.05 * np.sin(t)
        updates, state, info = update(theta, grads, state, params, value=loss)
        params = jax.tree.map(jnp.add, params, updates)
        if t + 1 in TABLE[case]:
            sums = [float(jnp.sum(params[k])) for k in shapes]
            np.testing.assert_allclose(sums, TABLE[case][t + 1], rtol=1e-5)
        if case == ("celo", 2) and t + 1 in LR_MULT:
            np.testing.assert_allclose(info.step_scale, 1e-3 * LR_MULT[t + 1], 1e-5)


SHAPES = [(), (1,), (9,), (6, 5), (5, 6), (8, 8), (3, 3, 4, 8), (8, 4, 3, 3), (2, 3, 4)]
SHAPES += [(6, 6, 3, 3), (2, 3, 5, 4, 3), (1, 7), (7, 1)]


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_agrees_with_the_slow_reference(backend: str):
    if backend == "fused" and xla.why_not(4):
        pytest.skip("no fused kernel here (no C++ compiler)")
    rule = architecture("celo", phase=1, backend=backend)
    theta = rule.init_theta(jax.random.key(3))
    # Far from zero biases, so that every meta-parameter matters.
    theta = jax.tree.map(lambda x: x + 0.1, theta)
    weights = {k: np.asarray(v, np.float64) for k, v in theta["rule"].items()}
    rng = np.random.default_rng(0)
    params = {str(i): 0.3 * rng.normal(size=s) for i, s in enumerate(SHAPES)}
    names = list(params)
    slow_params = {k: np.atleast_1d(v) for k, v in params.items()}
    slow_states = {k: reference_celo.start(v.shape) for k, v in slow_params.items()}
    fast = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    state, update = rule.init(theta, fast, 10), jax.jit(rule.update)
    for t in range(4):
        size = [1.0, 1e-4, 1e5, 0.0][t]
        grads = {k: np.asarray(size * rng.normal(size=fast[k].shape)) for k in names}
        updates, state, _ = update(
            theta, jax.tree.map(np.float32, grads), state, fast, value=1.0
        )
        fast = jax.tree.map(jnp.add, fast, updates)
        for k in names:
            g = np.atleast_1d(np.float32(grads[k]).astype(np.float64))
            delta, slow_states[k] = reference_celo.step(
                weights, slow_states[k], g, slow_params[k], 1e-3
            )
            error = np.max(np.abs(delta - np.asarray(updates[k])))
            assert error <= 2e-5 * np.max(np.abs(delta)), (SHAPES[int(k)], t)
            slow_params[k] = slow_params[k] + delta


@pytest.mark.parametrize("num_steps", [1, 5, 100, 2000, 4000, 1_000_000])
def test_a_history_follows_its_horizon(num_steps: int):
    """The slowest average remembers about as long as the run; so it does where the
    length changes."""
    count, other = jnp.asarray(num_steps), jnp.asarray(77)
    start = loss_history.init(XP, count)
    slowest = -1.0 / np.log(float(start.decays[-1]))
    assert slowest == pytest.approx(num_steps, 0.04)
    moved = loss_history.retime(XP, loss_history.init(XP, other), other, count)
    np.testing.assert_array_equal(moved.decays, start.decays)


@pytest.mark.parametrize(("num_steps", "factor"), [(10, 1.0), (50, 1.0), (200, 0.5)])
def test_steps_shrink_in_runs_longer_than_trained(num_steps: int, factor: float):
    """The random walk of relative steps is as long as in the longest known run."""
    published, ours = architecture("celo"), architecture("celo", trained_horizon=50)
    theta = published.init_theta(jax.random.key(0))
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}
    grads = jax.tree.map(jnp.cos, params)

    def third_update(rule):
        state = rule.init(theta, params, num_steps)
        for value in (2.0, 1.0, 1.5):
            updates, state, info = rule.update(
                theta, grads, state, params, value=jnp.asarray(value)
            )
        return updates["w"], info.step_scale

    for mine, theirs in zip(third_update(ours), third_update(published), strict=True):
        np.testing.assert_allclose(mine, factor * theirs, rtol=1e-6)


def test_bundled_weights_say_how_long_they_were_trained():
    rule, _ = load_optimizer(bundled_weights("celo"), "celo", {})
    assert config_of(rule)["trained_horizon"] == 2000


def test_meta_parameter_counts():
    """Live parameters of the published 37,089 and 36,865."""
    counts = {
        n: count_elements(architecture(n).init_theta(jax.random.key(0)))
        for n in ("celo", "celo_adam")
    }
    dead_layer, dead_head, dead_output = 18 * 64 + 64, 64 + 1, 4 + 1
    assert counts["celo"] == 37_089 - dead_layer - dead_head - dead_output
    assert counts["celo_adam"] == 36_865 - dead_layer


def test_adam_start_moves_against_the_momentum():
    rule = architecture("celo", start="adam", phase=1)
    theta = rule.init_theta(jax.random.key(0))
    params = {"w": jax.random.normal(jax.random.key(1), (20, 30))}
    state = rule.init(theta, params, 10)
    grads = {"w": jax.random.normal(jax.random.key(2), (20, 30))}
    updates, _, _ = rule.update(theta, grads, state, params, value=1.0)
    cosine = jnp.sum(updates["w"] * grads["w"]) / (
        jnp.linalg.norm(updates["w"]) * jnp.linalg.norm(grads["w"])
    )
    assert cosine < -0.8
    ratio = jnp.linalg.norm(updates["w"]) / jnp.linalg.norm(params["w"])
    assert 0.005 < ratio < 0.02


def test_theta_of_another_architecture_is_refused_path_by_path():
    celo, celo_adam = architecture("celo"), architecture("celo_adam")
    theta = celo_adam.init_theta(jax.random.key(0))
    with pytest.raises(StructureMismatch, match=r"rule/w0: expected float32\[30,4\]"):
        celo.theta_from_arrays(celo_adam.theta_to_arrays(theta))


def test_bad_settings_name_value_and_range():
    with pytest.raises(ConfigError, match=r"phase = 3: must be a number >= 1 and <= 2"):
        architecture("celo", phase=3)
    with pytest.raises(ConfigError, match="'adam'"):
        architecture("celo", start="adm")
    with pytest.raises(UnknownName, match="did you mean 'hidden'"):
        architecture("celo", hiden=4)
    with pytest.raises(ConfigError, match="kernel is for hidden <= 64, not 65"):
        architecture("celo", hidden=65, backend="fused")
    for decays in ((0.9, 0.99), (0.9, 0.99, 1.0), (-0.1, 0.5, 0.9)):
        with pytest.raises(ConfigError, match=r"momentum_decays = .*three numbers in"):
            architecture("celo", momentum_decays=decays)
