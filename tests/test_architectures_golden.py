"""The family of architectures against the published implementations' numbers, and
against short independent formulas where nothing is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import quick_jit

from lopax._core import tree as trees
from lopax._core.errors import StructureMismatch
from lopax._core.routing import Route, role_of
from lopax.architectures import architecture
from lopax.architectures.described import XP
from lopax.architectures.jax_ops import JaxDraw
from lopax.nets import mlp
from lopax.rules import layers, log_features, loss_normalizer, moments, velo

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "velo_s": ("velo", {"lstm": 64, "bank": 32, "bank_mult": 1.0}, 1e-5),
    "adafac_mlp": ("adafac_mlp", {}, 1e-5),
    "nn_adam": ("nn_adam", {}, 1e-5),
    "rnn_mlp": ("rnn_mlp", {"unseen_validation": "zero"}, 1e-5),
    "star": (
        "star",
        {"nominal": 0.0, "precondition": False, "nominal_controller": False},
        1e-5,
    ),
    "celo2base": ("celo2_base", {}, 1e-5),
    "celo2": (
        "celo2",
        {"routes": (Route(role="adam", name="/b$"),), "weight_decay": 0.01},
        1e-4,
    ),
}
PUBLISHED_COUNTS = {
    "velo_s": 46_337,
    "adafac_mlp": 197,
    "nn_adam": 21_896,
    "rnn_mlp": 35_799,
    "star": 207,
    "celo2base": 347,
    "celo2": 347,
}


def add(params: Any, updates: Any) -> Any:
    return optax.apply_updates(params, updates)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    return trees.nest({tuple(name.split("/")): x for name, x in flat.items()})


def part(data: Any, prefix: str) -> dict[str, Any]:
    n = len(prefix)
    return {k[n:]: np.asarray(data[k]) for k in data if k.startswith(prefix)}


@pytest.mark.parametrize("file", sorted(CASES))
def test_published_steps(file: str) -> None:
    """Every tensor after each of 25 steps, against its own size and, which is much
    stricter for short runs, against how far it has moved."""
    name, settings, tolerance = CASES[file]
    data = np.load(GOLDEN / f"{file}.npz")
    published = part(data, "theta/")
    assert sum(x.size for x in published.values()) == PUBLISHED_COUNTS[file]
    rule: Any = architecture(name, **settings)
    theta = rule.theta_from_arrays(published)
    grads, expected = part(data, "grads/"), part(data, "expected/")
    start = part(data, "params/")
    params = jax.tree.map(jnp.asarray, nested(start))
    state = rule.init(theta, params, int(data["num_steps"]))

    def step(grad: Any, state: Any, params: Any, loss: Any) -> Any:
        updates, state, _ = rule.update(theta, grad, state, params, value=loss)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    program = quick_jit(step)
    for t in range(int(data["num_steps"])):
        grad = nested({k: g[t] for k, g in grads.items()})
        params, state = program(grad, state, params, data["loss"][t])
        for key, found in trees.named_leaves(params).items():
            want = expected[key][t]
            error = np.max(np.abs(np.asarray(found) - want))
            size, moved = np.max(np.abs(want)), np.max(np.abs(want - start[key]))
            assert error <= tolerance * size, (t, key)
            rounding = 2.0 * np.finfo(np.float32).eps * (t + 1) * size
            assert error <= 50 * tolerance * moved + rounding, (t, key)


def table_inputs(names: str) -> tuple[dict[str, Any], Any]:
    """The tensors and gradients of the published tables: a (3, 4), b (4,), c scalar,
    d (2, 3, 5, 4)."""
    shapes = {"a": (3, 4), "b": (4,), "c": (), "d": (2, 3, 5, 4)}

    def ramp(shape: tuple[int, ...]) -> np.ndarray:
        return np.arange(int(np.prod(shape))).reshape(shape)

    params = {
        n: jnp.asarray(0.1 * np.sin(0.7 * ramp(shapes[n]) + 0.3) + 0.02, jnp.float32)
        for n in names
    }

    def grads(t: int) -> dict[str, Any]:
        return {
            n: jnp.asarray(
                0.05 * np.cos(1.3 * ramp(shapes[n]) + 0.5 * t + q), jnp.float32
            )
            for q, n in enumerate("abcd")
            if n in names
        }

    return params, grads


def sine_theta(shapes: list[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    return {
        name: (0.3 * np.sin(0.9 * np.arange(int(np.prod(shape))) + j))
        .reshape(shape)
        .astype(np.float32)
        for j, (name, shape) in enumerate(shapes)
    }


def mlp_shapes(prefix: str, bank: tuple[int, ...], hidden: int) -> Any:
    """Published names in string order, so that w0__10 comes before w0__2."""
    channels = [1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3]
    first = sorted((f"w0__{i}", (n, hidden)) for i, n in enumerate(channels))
    shapes = [("b0", (hidden,)), ("b1", (hidden,)), ("b2", (3,)), *first]
    shapes += [("w1", (hidden, hidden)), ("w2", (hidden, 3))]
    return [(prefix + name, (*bank, *shape)) for name, shape in shapes]


@pytest.mark.parametrize(
    ("role", "sums"),
    [
        (
            "learned",
            {
                1: (0.3354619, 0.3206086, 1.4444501),
                2: (0.2157090, 0.2807592, 0.2479763),
                10: (-0.7423782, -0.0341885, -9.3312566),
            },
        ),
        (
            "orthogonal",
            {
                1: (0.3997766, 0.3206086, 2.1797019),
                2: (0.3431069, 0.2807592, 1.6927362),
                10: (-0.1350267, -0.0341885, -2.2014637),
            },
        ),
    ],
)
def test_celo2_table(role: str, sums: dict[int, tuple[float, ...]]) -> None:
    rule: Any = architecture("celo2", step_mult=0.01, routes=(), default_role=role)
    theta = rule.theta_from_arrays(sine_theta(mlp_shapes("ff_mod_stack/~/", (), 8)))
    params, grads = table_inputs("abcd")
    state = rule.init(theta, params)
    program = quick_jit(lambda g, s, p: rule.update(theta, g, s, p)[:2])
    for t in range(max(sums)):
        updates, state = program(grads(t), state, params)
        params = add(params, updates)
        np.testing.assert_allclose(abs(updates["c"]), 0.01, rtol=1e-6)
        if t + 1 in sums:
            found = [float(jnp.sum(params[n])) for n in "abd"]
            np.testing.assert_allclose(found, sums[t + 1], rtol=3e-4, atol=3e-6)


def velo_table_theta() -> dict[str, np.ndarray]:
    """LSTM 8, a bank of 4, in the order the published table numbers its leaves."""
    shapes = mlp_shapes("ff_mod_stack/~/", (4,), 4)
    shapes += [(f"lstm_init_state/{k}", (1, 8)) for k in ("hidden", "cell")]
    layers = {"linear": (30, 8), "linear_1": (30, 8), "linear_2": (30, 8)}
    layers |= {"rnn/linear": (16, 32), "rnn_to_controls": (8, 4), "step_size": (8, 1)}
    for layer, (fan_in, fan_out) in layers.items():
        shapes += [(f"rnn_params/{layer}/b", (fan_out,))]
        shapes += [(f"rnn_params/{layer}/w", (fan_in, fan_out))]
    return sine_theta(shapes)


VELO_SUMS = {
    1: (0.4549660, 0.3603855, 0.0495501, 2.6388234),
    2: (0.4548645, 0.3603589, 0.0495421, 2.6379202),
    3: (0.4547787, 0.3603195, 0.0495430, 2.6369536),
    10: (0.4541539, 0.3600199, 0.0495375, 2.6308828),
    50: (0.4491736, 0.3580104, 0.0492960, 2.5780288),
}


def run_velo(names: str, steps: int, **settings: Any) -> dict[int, dict[str, Any]]:
    rule: Any = architecture("velo", lstm=8, bank=4, **settings)
    theta = rule.theta_from_arrays(velo_table_theta())
    params, grads = table_inputs(names)
    state = rule.init(theta, params, 100)
    program = quick_jit(
        lambda g, s, p, loss: rule.update(theta, g, s, p, value=loss)[:2]
    )
    seen = {}
    for t in range(steps):
        loss = np.float32(2.0 * np.exp(-0.1 * t) + 0.05 * np.sin(t))
        updates, state = program(grads(t), state, params, loss)
        params = add(params, updates)
        seen[t + 1] = params
    return seen


def test_velo_table() -> None:
    seen = run_velo("abcd", 50)
    for step, want in VELO_SUMS.items():
        found = [float(jnp.sum(seen[step][n])) for n in "abcd"]
        np.testing.assert_allclose(found, want, rtol=2e-6, err_msg=str(step))


def last_velo_step(names: str, steps: int = 5, **settings: Any) -> np.ndarray:
    """The update of tensor `a` in the last step of a run with random theta."""
    rule: Any = architecture("velo", lstm=8, bank=4, **settings)
    theta = rule.init_theta(jax.random.key(3))
    params, grads = table_inputs(names)
    state = rule.init(theta, params, 100)
    program = quick_jit(
        lambda g, s, p, loss: rule.update(theta, g, s, p, value=loss)[:2]
    )
    updates: Any = None
    for t in range(steps):
        updates, state = program(grads(t), state, params, np.float32(2.0 + 0.3 * t))
        params = add(params, updates)
    return np.asarray(updates["a"])


def test_velo_tensors_hear_each_other_and_the_bugs_are_switches() -> None:
    """A tensor's steps depend on which others there are (the maximum over tensors),
    and on whether the LSTM's state and a full loss history are carried."""
    together = last_velo_step("ad")
    size = np.max(np.abs(together))
    for other in (
        last_velo_step("a"),
        last_velo_step("ad", frozen_lstm=True),
        last_velo_step("ad", short_loss_history=True),
    ):
        assert np.max(np.abs(together - other)) > 1e-4 * size
    # Without a carried state the first step is the same.
    frozen = last_velo_step("ad", 1, frozen_lstm=True)
    np.testing.assert_array_equal(last_velo_step("ad", 1), frozen)


def test_velo_steps_without_and_with_a_clipped_norm_factor() -> None:
    params, _ = table_inputs("ad")
    size = float(np.sqrt(np.mean(np.square(params["a"])) + 1e-9))
    published = last_velo_step("ad", 1)
    free = last_velo_step("ad", 1, norm_factor="none")
    np.testing.assert_allclose(free * size, published, rtol=1e-5)
    limit = 0.5 * size
    clipped = last_velo_step("ad", 1, norm_factor="clipped", norm_limit=limit)
    np.testing.assert_allclose(clipped, 0.5 * published, rtol=1e-5)
    loose = last_velo_step("ad", 1, norm_factor="clipped", norm_limit=2 * size)
    np.testing.assert_allclose(loose, published, rtol=1e-5)


def star_reference(theta: Any, grads: Any, p: np.ndarray, c: Any) -> np.ndarray:
    """STAR for one vector, from the formulas, in float64."""
    beta_m, beta_v, beta_f = (
        np.clip(1 - (1 - np.array(start)) * np.exp(10 * np.array(offset)), 0, 1)
        for start, offset in (
            ((0.9, 0.99, 0.999), theta["decays"]["momenta"]),
            ((0.999,), theta["decays"]["second"]),
            ((0.9, 0.99, 0.999), theta["decays"]["factored"]),
        )
    )
    net = {k: np.asarray(v, np.float64) for k, v in theta["net"].items()}
    m, v, f = np.zeros((3, p.size)), np.zeros(p.size), np.zeros((3, p.size))
    for t, g in enumerate(grads):
        m = beta_m[:, None] * m + (1 - beta_m[:, None]) * g
        v = beta_v[0] * v + (1 - beta_v[0]) * g**2
        f = beta_f[:, None] * f + (1 - beta_f[:, None]) * (g**2 + 1e-30)
        scale = (v + 1e-6) ** -0.5
        rows = [g[None], p[None], m, v[None], m * scale, scale[None]]
        rows += [g * np.maximum(f + 1e-9, 1e-9) ** -0.5, f, f]
        rows += [(f + 1e-8) ** -0.5, (f + 1e-8) ** -0.5, m * (f + 1e-6) ** -0.5]
        x = np.concatenate(rows)
        x = x * (1e-5 + np.mean(x**2, axis=1, keepdims=True)) ** -0.5
        times = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
        time = np.tanh(t / times - 1)
        x = np.concatenate([x, np.repeat(time[:, None], p.size, axis=1)]).T
        x = np.maximum(x @ net["w0"] + net["b0"], 0)
        x = np.maximum(x @ net["w1"] + net["b1"], 0)
        out = x @ net["w2"] + net["b2"]
        learned = c.step_mult * out[:, 0] * np.exp(1e-3 * out[:, 1]) * scale
        nominal = c.nominal * np.exp(1e-3 * out[:, 2]) * np.mean(m * scale, axis=0)
        kept = 1 - c.weight_decay * np.exp(1e-3 * out[:, 3])
        p = kept * p - learned - nominal
    return p


def test_star_with_everything_on() -> None:
    rule: Any = architecture("star", weight_decay=0.01, decay_controller=True)
    theta = rule.init_theta(jax.random.key(0))
    theta = jax.tree.map(
        lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), theta
    )
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(6, 5))
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = rule.init(theta, params)
    program = quick_jit(lambda g, s, p: rule.update(theta, g, s, p)[:2])
    for g in grads:
        updates, state = program({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = add(params, updates)
    want = star_reference(theta, grads, start, rule.config)
    np.testing.assert_allclose(params["w"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("sgd", 1.0),
        ("sgdm", 0.001),
        ("aggmo", 0.037),
        ("adam", 0.0315),
        ("adam_aggmo", 1.167),
    ],
)
def test_star_nominal_directions(kind: str, want: float) -> None:
    """One step from zero with gradient 1: each direction is known in closed form."""
    rule: Any = architecture(
        "star",
        step_mult=1e-12,
        nominal=1.0,
        nominal_direction=kind,
        nominal_controller=False,
    )
    theta = rule.init_theta(jax.random.key(0))
    params = {"w": jnp.ones((2,))}
    program = quick_jit(lambda s: rule.update(theta, params, s, params)[0])
    updates = program(rule.init(theta, params))
    exact = {"adam": 1e-3 / np.sqrt(1e-3 + 1e-6)}
    exact["adam_aggmo"] = 0.037 / np.sqrt(1e-3 + 1e-6)
    direction = exact.get(kind, want)
    np.testing.assert_allclose(-updates["w"], np.exp(1e-3) * direction, rtol=1e-4)


def test_mulo_scales_hidden_matrices_only() -> None:
    settings = {"hidden": 4, "step_mult": 1e-2}
    scaled = architecture("mulo", base_width=2.0, **settings)
    plain = architecture("adafac_mlp", **settings)
    theta = plain.init_theta(jax.random.key(0))
    shapes = {"hidden1": (3, 8, 4), "hidden2": (2, 3), "bias": (4,), "lm_head": (8, 3)}
    params = {k: jnp.ones(s) + 0.1 * jnp.arange(s[-1]) for k, s in shapes.items()}

    def first_updates(rule: Any) -> Any:
        state = rule.init(theta, params)
        return quick_jit(lambda s: rule.update(theta, params, s, params)[0])(state)

    one, two = first_updates(scaled), first_updates(plain)
    factors = {"hidden1": 2.0 / 8.0, "hidden2": 1.0, "bias": 1.0, "lm_head": 1.0}
    for key, factor in factors.items():
        np.testing.assert_allclose(one[key], factor * two[key], rtol=1e-6, err_msg=key)


def run_with_optax(name: str, reference: Any, **kw: Any) -> None:
    rule: Any = architecture(name, **kw)
    theta = rule.init_theta(jax.random.key(0))
    if "log_schedule" in theta:
        theta["log_schedule"] = jnp.asarray([0.0, 1.0, -2.0])
    params = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray(0.3)}
    state, other = rule.init(theta, params, 8), reference.init(params)
    for t in range(10):
        grads = jax.tree.map(lambda p, t=t: jnp.cos(p + t), params)
        updates, state, _ = rule.update(theta, grads, state, params)
        want, other = reference.update(grads, other, params)
        for key, update in updates.items():
            np.testing.assert_allclose(update, want[key], rtol=1e-4, atol=1e-9)


def test_learned_hyperparameters_start_as_the_hand_made_rules() -> None:
    run_with_optax("learned_sgd", optax.sgd(1e-2, momentum=0.9))
    run_with_optax("learned_adam", optax.adam(1e-3))

    def rate(t: Any) -> Any:
        knots, logs = jnp.asarray([0.0, 0.5, 1.0]), jnp.asarray([0.0, 1.0, -2.0])
        return 1e-3 * jnp.exp(jnp.interp(t / 8.0, knots, logs))

    run_with_optax("scheduled_adam", optax.adam(rate), knots=3)


def test_nn_adam_starts_as_adam_without_bias_correction() -> None:
    rule: Any = architecture("nn_adam", lstm=4, learning_rate=1e-2)
    theta = rule.init_theta(jax.random.key(0))
    params = {"w": jnp.asarray([1.0, -2.0])}
    state = rule.init(theta, params)
    m = v = np.zeros(2)
    for t in range(4):
        grad = np.asarray([0.3, -0.1]) * (t + 1)
        updates, state, _ = rule.update(theta, {"w": grad}, state, params)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        want = -1e-2 * m / (1e-8 + np.sqrt(v + 1e-10))
        np.testing.assert_allclose(updates["w"], want, rtol=1e-3)


def test_l2o_lstm_first_step() -> None:
    rule: Any = architecture("l2o_lstm", lstm=3, layers=1, log_range=10.0)
    theta = rule.init_theta(jax.random.key(0))
    grad = np.asarray([[0.5, -1e-6], [0.0, -20.0]])
    params = {"w": jnp.zeros((2, 2))}
    updates, state, _ = rule.update(
        theta, {"w": jnp.asarray(grad, jnp.float32)}, rule.init(theta, params), params
    )
    small = np.exp(-10.0)
    log = np.where(
        np.abs(grad) > small, np.log(np.maximum(np.abs(grad), small)) / 10, -1
    )
    sign = np.where(np.abs(grad) > small, np.sign(grad), grad / small)
    x = np.stack([log, sign, *([np.zeros((2, 2))] * 3)], axis=-1)
    w, b = np.asarray(theta["lstm0"]["w"]), np.asarray(theta["lstm0"]["b"])
    i, g, _, o = np.split(x @ w + b, 4, axis=-1)
    cell = np.tanh(g) / (1 + np.exp(-i))
    hidden = np.tanh(cell) / (1 + np.exp(-o))
    want = 0.1 * (hidden @ np.asarray(theta["head"]["w"]))[..., 0]
    want = np.where(grad == 0.0, 0.0, want)  # what never saw a gradient stays
    np.testing.assert_allclose(updates["w"], want, rtol=1e-4, atol=1e-7)
    assert state.tensors["w"].hidden.shape == (2, 2, 3)


def test_l2o_lstm_takes_gradients_as_given() -> None:
    """The meta-gradient through two steps on x^2/2 with the gradient detached."""
    rule: Any = architecture("l2o_lstm", lstm=3, layers=1)
    theta = rule.init_theta(jax.random.key(0))

    def meta_loss(x0: Any) -> Any:
        params = {"x": x0}
        state = rule.init(theta, params)
        for _ in range(2):
            updates, state, _ = rule.update(theta, params, state, params)
            params = add(params, updates)
        return jnp.sum(params["x"])

    np.testing.assert_allclose(jax.grad(meta_loss)(jnp.ones(2)), 1.0)


def test_rnn_mlp_sees_the_validation_loss() -> None:
    rule: Any = architecture("rnn_mlp", lstm=4, hidden=4)
    theta = rule.init_theta(jax.random.key(0))
    params = {"w": jnp.ones((2, 3))}
    state = rule.init(theta, params)
    seen = rule.observe_validation(state, 2.5)
    assert int(seen.shared.common.steps) == 1
    np.testing.assert_allclose(
        loss_normalizer.corrected_mean(XP, seen.shared.common.valid, 0.95),
        2.5,
        rtol=1e-6,
    )
    program = quick_jit(lambda s: rule.update(theta, params, s, params, value=2.0)[0])
    assert jnp.max(jnp.abs(program(state)["w"] - program(seen)["w"])) > 1e-8
    unchanged = rule.observe_validation(state, jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, unchanged, state)


def test_loss_normalizer_is_a_z_score() -> None:
    losses = np.asarray([3.0, 2.0, 2.5, 1.0])
    moments, mean, var = loss_normalizer.init(XP), 0.0, 0.0
    for loss in losses:
        moments = loss_normalizer.update(XP, moments, jnp.asarray(loss), 0.9)
        mean = 0.9 * mean + 0.1 * loss
        var = 0.9 * var + 0.1 * (mean - loss) ** 2
    correct = 1 / (1 - 0.9**4)
    want = (1.7 - mean * correct) / np.sqrt(var * correct)
    np.testing.assert_allclose(
        loss_normalizer.score(XP, moments, jnp.asarray(1.7), 0.9), want, rtol=1e-4
    )


def test_routes_by_name_rank_and_predicate() -> None:
    routes = (
        Route(role="adam", max_rank=1),
        Route(role="adam", name=r"(?i)embed"),
        Route(role="big", predicate=lambda name, shape: int(np.prod(shape)) > 100),
        Route(role="conv", min_rank=3, max_rank=4),
    )
    expected = {
        ("block/0/b", (4,)): "adam",
        ("scale", ()): "adam",
        ("Embed/table", (8, 4)): "adam",
        ("w", (50, 4)): "big",
        ("c", (3, 3, 2, 2)): "conv",
        ("d", (2, 2)): "rest",
    }
    for (name, shape), role in expected.items():
        assert role_of(name, shape, routes, "rest") == role, name


def test_celo2_default_roles_and_state() -> None:
    rule: Any = architecture("celo2")
    theta = rule.init_theta(jax.random.key(0))
    params = {
        "embed": jnp.ones((5, 3)),
        "layer": {"w": jnp.ones((3, 3)), "b": jnp.ones((3,))},
    }
    state = rule.init(theta, params)
    sizes = {k: trees.count_elements(v) for k, v in state.tensors["layer"].items()}
    assert sizes == {"w": 4 * 9 + 3 * (3 + 3), "b": 2 * 3}
    assert trees.count_elements(state.tensors["embed"]) == 2 * 15


def test_celo2_adam_role_with_bias_correction_is_adam() -> None:
    route = ({"role": "adam"},)
    rule: Any = architecture(
        "celo2", routes=route, bias_correction=True, adam_mult=1.0, weight_decay=0.1
    )
    theta = rule.init_theta(jax.random.key(0))
    reference: Any = optax.adamw(
        1e-3, b1=0.9, b2=0.95, eps=0.0, eps_root=1e-8, weight_decay=0.1
    )
    params = {"w": jnp.asarray([[1.0, -2.0]])}
    state, other = rule.init(theta, params), reference.init(params)
    for t in range(4):
        grads = {"w": jnp.asarray([[0.1, 0.2]]) * (t + 1)}
        updates, state, _ = rule.update(theta, grads, state, params)
        want, other = reference.update(grads, other, params)
        np.testing.assert_allclose(updates["w"], want["w"], rtol=2e-5)


def test_both_forms_of_the_network_agree() -> None:
    theta = layers.mlp_init(JaxDraw(), jax.random.key(0), (5, 4, 4, 2))
    rng = np.random.default_rng(0)
    shapes = [(3, 4, 5), (3, 1, 5), (1, 4, 5), (3, 4, 5), ()]
    channels = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    scales = [jnp.asarray(x, jnp.float32) for x in rng.uniform(0.5, 2.0, size=5)]
    unrolled = mlp.apply(theta, channels, scales)
    dense = mlp.apply_dense(theta, channels, scales)
    for i, output in enumerate(unrolled):
        np.testing.assert_allclose(output, dense[..., i], rtol=1e-5, atol=1e-6)


def test_the_unrolled_network_has_the_right_derivatives() -> None:
    """Its rule is that of the dense form; JAX derives the unrolled one itself."""
    theta = layers.mlp_init(JaxDraw(), jax.random.key(0), (3, 4, 2))
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (3, 1), ()]
    channels = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    scales = [jnp.asarray(x, jnp.float32) for x in rng.uniform(0.5, 2.0, size=3)]

    def slope(forward: Any) -> Any:
        def total(*operands: Any) -> Any:
            first, second = forward(*operands)
            return jnp.sum(jnp.sin(first) + first * second)

        def steepness(*operands: Any) -> Any:
            return optax.tree.norm(jax.grad(total, (0, 1, 2))(*operands))

        operands = (theta, channels, scales)
        return [jax.grad(f, (0, 1, 2))(*operands) for f in (total, steepness)]

    ours, theirs = slope(mlp.apply), slope(mlp._apply.fun)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours,
        theirs,
    )


def test_learned_decays_stay_in_the_unit_interval() -> None:
    start = (0.9, 0.99, 0.999)

    def learned(offset: float) -> Any:
        offsets = {"momenta": jnp.full(3, offset), "second": jnp.full(1, offset)}
        return moments.learned(XP, {**offsets, "factored": jnp.full(3, offset)})

    for same in (learned(0.0).momenta, learned(0.0).factored):
        np.testing.assert_allclose(same, start, rtol=2e-7)
    tenth = learned(-np.log(10.0) / 10.0).momenta
    np.testing.assert_allclose(tenth, (0.99, 0.999, 0.9999), rtol=1e-6)
    for offset in (-100.0, 100.0):
        decays = jnp.concatenate(learned(offset))
        assert np.all((decays >= 0.0) & (decays <= 1.0))


def test_tensor_features() -> None:
    np.testing.assert_allclose(
        np.asarray(log_features.log_shape((3, 1, 2, 4, 5))) + 1.0,
        np.log([3.0, 1.0, 2.0, 20.0]),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(velo.rank_one_hot((3, 1, 2)), [0, 0, 1, 0, 0])
    assert not np.any(velo.rank_one_hot((2,) * 5))
    ordered = log_features.in_name_order({"b": jnp.asarray(2.0), "a": jnp.ones(2)})
    flat = jnp.concatenate([jnp.atleast_1d(x) for x in ordered])
    np.testing.assert_array_equal(flat, [1.0, 1.0, 2.0])


@pytest.mark.parametrize("name", ["velo", "celo2", "star", "adafac_mlp", "rnn_mlp"])
def test_published_arrays_of_another_rule_are_refused(name: str) -> None:
    data = np.load(GOLDEN / "nn_adam.npz")
    with pytest.raises(StructureMismatch, match="Expected against found"):
        architecture(name).theta_from_arrays(part(data, "theta/"))
