"""Learned Muon: the hand-made optimizer at theta = 0, scales, horizons and roles."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import quick_jit

import lopax
from lopax._core.errors import ConfigError, MissingHorizon, MissingLoss
from lopax.architectures import architecture
from lopax.architectures.described import XP
from lopax.pretrained import read_weights
from lopax.pretrained.files import read_arrays
from lopax.rules import form, momentum_features, unit_ratios
from lopax.rules.form import Place

SHAPES = {
    "dense": {"w": (24, 40), "b": (40,)},
    "conv": {"kernel": (3, 3, 4, 16), "scale": (16,)},
    "embed": {"table": (30, 8)},
}
STEPS = 12


def tree(seed: int, scale: float = 1.0) -> Any:
    """A tree of `SHAPES` with weights of the usual size and ones for vectors."""
    rng = np.random.default_rng(seed)

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        if len(shape) == 1:
            return jnp.full(shape, scale, jnp.float32)
        fan_in = np.prod(shape[:-1])
        values = scale * rng.standard_normal(shape) / np.sqrt(fan_in)
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def gradients(seed: int, scale: float = 1.0) -> list[Any]:
    return [tree(100 * seed + i, scale) for i in range(1, STEPS + 1)]


def updates_of(rule: Any, theta: Any, params: Any, grads: list[Any]) -> list[Any]:
    """The updates of a run of `len(grads)` steps."""
    state = rule.init(theta, params, len(grads))
    step = jax.jit(lambda g, s, p, v: rule.update(theta, g, s, p, value=v)[:2])
    found = []
    for i, grad in enumerate(grads):
        updates, state = step(grad, state, params, 2.0 - 0.1 * i)
        found.append(updates)
        params = optax.apply_updates(params, updates)
    return found


def by_hand(grads: list[Any]) -> list[Any]:
    """The hand-made optimizer, told once more in numpy."""
    total, found = len(grads), []
    sums = jax.tree.map(lambda x: (np.zeros(x.shape), np.zeros(x.shape)), grads[0])
    for t, grad in enumerate(grads):
        size = 0.05 * min(1.0, (t + 1) / max(0.02 * total, 1.0)) * (1.0 - t / total)

        def advance(g: Any, pair: Any) -> Any:
            g, (m, v) = np.asarray(g, np.float64), pair
            return 0.95 * m + 0.05 * g, 0.99 * v + 0.01 * g**2

        sums = jax.tree.map(advance, grad, sums)

        def move(path: Any, g: Any, pair: Any, t: int = t, size: float = size) -> Any:
            m, v = pair
            u = 0.05 * np.asarray(g) + 0.95 * m / (1.0 - 0.95 ** (t + 1))
            if g.ndim == 1 or path[0].key == "embed":
                ratio = 0.3 if g.ndim == 1 else 1.0
                v = v / (1.0 - 0.99 ** (t + 1))
                return -ratio * size * u / np.sqrt(v + 1e-16)
            u = u.reshape(-1, g.shape[-1])
            x = u / np.linalg.norm(u)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
            gain = np.sqrt(max(1.0, u.shape[1] / u.shape[0]))
            return (-size * gain * x).reshape(g.shape)

        found.append(jax.tree_util.tree_map_with_path(move, grad, sums))
    return found


WHOLE = {"history": True, "outputs": True, "elements": 3}
"""The parts that are not there unless they are asked for."""


@pytest.mark.parametrize("settings", [{}, {"learned": False}, WHOLE])
def test_theta_of_zero_is_the_hand_made_optimizer(settings: dict[str, Any]) -> None:
    rule = architecture("learned_muon", **settings)
    theta = rule.init_theta(jax.random.key(3))
    grads = gradients(1)
    found = updates_of(rule, theta, tree(0), grads)
    for ours, reference in zip(found, by_hand(grads), strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_every_part_of_theta_acts() -> None:
    rule = architecture("learned_muon", **WHOLE)
    theta = rule.init_theta(jax.random.key(3))
    grads = jax.tree.map(lambda *xs: jnp.stack(xs), *gradients(2)[:-2])
    losses = 2.0 - 0.1 * jnp.arange(STEPS - 2.0)

    @quick_jit
    def last(theta: Any) -> Any:
        """The last update of a run that is cut short."""

        def step(carry: Any, given: Any) -> Any:
            (params, state), (grad, loss) = carry, given
            moves, state, _ = rule.update(theta, grad, state, params, value=loss)
            return (optax.apply_updates(params, moves), state), moves

        start = tree(0), rule.init(theta, tree(0), STEPS)
        moves = jax.lax.scan(step, start, (grads, losses))[1]
        return jax.tree.map(lambda x: x[-1], moves)

    start = last(theta)

    def moved(path: Any, leaf: Any) -> Any:
        changed = jax.tree_util.tree_map_with_path(
            lambda p, x: x + 0.3 if p == path else x, theta
        )
        gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), last(changed), start)
        return max(float(g) for g in jax.tree.leaves(gaps))

    effects = jax.tree_util.tree_map_with_path(moved, theta)
    for path, effect in jax.tree_util.tree_leaves_with_path(effects):
        name = jax.tree_util.keystr(path)
        behind = ("hidden", "w0", "b0", "w1", "b1")
        if any(part in name for part in behind):  # behind a layer of zeros
            assert effect < 1e-7, name
        elif "horizon" in name:
            assert effect > 0.0, name
        else:
            assert effect > 1e-5, name


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_steps_follow_the_scale_of_the_network(scale: float) -> None:
    rule = architecture("learned_muon")
    theta = rule.init_theta(jax.random.key(3))
    usual = updates_of(rule, theta, tree(0), gradients(1))
    scaled = updates_of(rule, theta, tree(0, scale), gradients(1, 1.0 / scale))
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(scaled), strict=True):
        factor = np.linalg.norm(b) / np.linalg.norm(a)
        assert 0.3 * scale < factor < 3.0 * scale


def test_without_matrices_vectors_are_the_weights() -> None:
    """A vector alone moves as far as a matrix would, in units of its own size."""
    rule, rng = architecture("learned_muon", network=False), np.random.default_rng(0)
    theta = rule.init_theta(jax.random.key(0))
    theta["size"] = jnp.asarray([0.1, -0.5, 0.3])
    values = jnp.asarray(rng.standard_normal(50), jnp.float32)

    def moved(params: Any) -> float:
        grads = [jax.tree.map(jnp.sign, params)] * STEPS
        found = updates_of(rule, theta, params, grads)
        return float(sum(jnp.abs(jax.tree.leaves(u)[-1]).mean() for u in found))

    alone = moved({"x": values})
    expected = sum(
        0.05 * np.exp(0.1) * min(i + 1.0, 1.0) * (1.0 - i / STEPS) for i in range(STEPS)
    )
    np.testing.assert_allclose(alone, expected, rtol=0.1)
    np.testing.assert_allclose(moved({"x": 0.01 * values}), alone, rtol=1e-3)
    big = float(jnp.sqrt(jnp.mean(jnp.square(100.0 * values))))
    np.testing.assert_allclose(moved({"x": 100.0 * values}), big * alone, rtol=0.05)
    beside = moved({"w": jnp.asarray(rng.standard_normal((50, 50)) / 7.0), "x": values})
    np.testing.assert_allclose(beside, 0.3 * np.exp(-0.6) * alone, rtol=0.05)


def test_usual_and_unusual_sizes() -> None:
    params = tree(0)
    leaves = jax.tree.leaves(params)  # conv kernel, conv scale, dense b, dense w, table
    matrices = [True, False, False, True, False]

    def ratio(xs: Any, matrices: Any = matrices) -> Any:
        starts = [
            form.complete(
                unit_ratios.measure(
                    XP, Place(x.shape, reading=tuple(range(x.ndim))), x, is_matrix
                )
            )
            for x, is_matrix in zip(xs, matrices, strict=True)
        ]
        rows = jnp.stack(starts) if starts else jnp.zeros((0, 2))
        usual = unit_ratios.usual(XP, rows)
        return np.asarray(unit_ratios.ratios(XP, rows, usual))

    np.testing.assert_array_equal(ratio(leaves), 1.0)
    # A zero-initialised matrix follows the others, one of its own size does not.
    leaves[3] = jnp.zeros_like(leaves[3])
    np.testing.assert_array_equal(ratio(leaves), 1.0)
    np.testing.assert_allclose(ratio([100.0 * x for x in leaves]), 100.0, rtol=0.2)
    leaves = jax.tree.leaves(params)
    leaves[3] = leaves[3] * 1e4
    three = [*leaves, leaves[0]]
    found = ratio(three, [*matrices, True])
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0, found[3], 1.0, 1.0])
    assert 5e3 < found[3] < 2e4
    assert ratio([], []).shape == (0,)
    zeros = [jnp.zeros((3, 4)), jnp.zeros((0, 3))]
    np.testing.assert_array_equal(ratio(zeros, [True, True]), 1.0)


def test_zero_initialised_tensors_move_from_the_first_step() -> None:
    rule = architecture("learned_muon")
    theta = rule.init_theta(jax.random.key(3))
    zeros = jax.tree.map(jnp.zeros_like, tree(0))
    first = updates_of(rule, theta, zeros, gradients(1))[0]
    for leaf in jax.tree.leaves(first):
        assert float(jnp.sqrt(jnp.mean(jnp.square(leaf)))) > 1e-3


def test_an_extended_run_is_a_run_of_that_length() -> None:
    rule = architecture("learned_muon", history=True)
    theta = rule.init_theta(jax.random.key(3))
    params, grads = tree(0), gradients(1)[0]
    short = lopax.extend(rule.init(theta, params, 10), 1000)
    long = rule.init(theta, params, 1000)
    a, _, _ = rule.update(theta, grads, short, params, value=1.0)
    b, _, _ = rule.update(theta, grads, long, params, value=1.0)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_history_of_the_loss_is_heard_if_it_is_asked_for() -> None:
    """Also where the network in the direction makes a step, and only then."""
    params, grads = tree(0), gradients(1)[0]
    for history in (False, True):
        rule = architecture("learned_muon", history=history, elements=3)
        assert rule.needs_loss is history
        theta = rule.init_theta(jax.random.key(3))
        state = rule.init(theta, params, 10)
        if history:
            with pytest.raises(MissingLoss, match="learned_muon"):
                rule.update(theta, grads, state, params)
        else:
            assert "history" not in theta
            rule.update(theta, grads, state, params)


def test_kernels_of_convolutions_have_a_size_of_their_own() -> None:
    rule = architecture("learned_muon", kernels=True, network=False, signal=False)
    theta = rule.init_theta(jax.random.key(3))
    given = {**theta, "kernels": jnp.asarray(0.7)}
    one, other = (updates_of(rule, x, tree(0), gradients(5))[0] for x in (theta, given))
    for (path, a), b in zip(
        jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        factor = np.exp(0.7) if a.ndim == 4 else 1.0
        np.testing.assert_allclose(b, factor * a, rtol=1e-5, err_msg=str(path))


@pytest.mark.parametrize(
    ("shape", "reading", "kernel"),
    [
        ((3, 3, 4, 16), (0, 1, 2, 3), True),
        ((16, 4, 3, 3), (2, 3, 1, 0), True),  # of torch
        ((3, 3, 3, 4, 16), (0, 1, 2, 3, 4), True),
        ((16, 16, 3, 96), (0, 1, 2, 3), True),  # patches
        ((1, 1, 4, 16), (0, 1, 2, 3), False),  # is a matrix
        ((24, 16), (0, 1), False),
        ((8, 64, 512), (0, 1, 2), False),  # what leaves attention's heads
        ((512, 3, 8, 64), (0, 1, 2, 3), False),  # what goes into them
        ((16,), (0,), False),
    ],
)
def test_a_kernel_is_known_by_its_window(
    shape: tuple[int, ...], reading: tuple[int, ...], kernel: bool
) -> None:
    place = Place(shape, role="matrix", reading=reading)
    assert momentum_features.is_kernel(place) is kernel


def test_outputs_are_brought_to_steps_of_one_length() -> None:
    """By NorMuon's rule, at a power of one; the step keeps its norm."""
    rule = architecture("learned_muon", outputs=True, network=False, signal=False)
    theta = rule.init_theta(jax.random.key(3))
    params = {"w": tree(0)["dense"]["w"], "kernel": tree(0)["conv"]["kernel"]}
    rough = jnp.exp(jnp.linspace(-2.0, 2.0, 24))[:, None]  # few inputs count
    first = gradients(4)[0]
    grads = [{"w": rough * first["dense"]["w"], "kernel": first["conv"]["kernel"]}]

    def lengths(power: float) -> Any:
        given = {**theta, "outputs": jnp.asarray(power)}
        last = updates_of(rule, given, params, STEPS * grads)[-3]
        return [
            np.linalg.norm(np.reshape(last[k], (-1, last[k].shape[-1])), axis=0)
            for k in ("w", "kernel")
        ]

    for start, half, one in zip(*map(lengths, (0.0, 0.5, 1.0)), strict=True):
        spreads = [np.std(np.log(x)) for x in (start, half, one)]
        assert spreads[2] < 0.5 * spreads[0] and spreads[2] < spreads[1] < spreads[0]
        np.testing.assert_allclose(
            np.linalg.norm(one), np.linalg.norm(start), rtol=0.05
        )


def test_a_trained_celo2_fits_into_the_direction() -> None:
    """Alone in it, its network gives the directions of Celo2."""
    celo2 = architecture("celo2", step_mult=0.05)
    given = celo2.init_theta(jax.random.key(5))
    given["rule"]["w2"] = given["rule"]["w2"] + 0.3
    params = {"w": tree(0)["dense"]["w"]}
    grads = [{"w": g["dense"]["w"]} for g in gradients(4)]
    theirs = updates_of(celo2, given, params, grads)
    rule = architecture("learned_muon", elements=8, network=False, signal=False)
    theta = rule.init_theta(jax.random.key(3))
    much = jax.tree.map(lambda x: 1e4 * x, given["rule"])
    theta["elements"] = {**given["rule"], "w2": much["w2"], "b2": much["b2"]}
    ours = updates_of(rule, theta, params, grads)
    one, other = (jnp.ravel(u[0]["w"]) for u in (theirs, ours))
    cosine = jnp.vdot(one, other) / jnp.linalg.norm(one) / jnp.linalg.norm(other)
    assert cosine > 0.999


def test_bad_settings_and_a_missing_horizon() -> None:
    with pytest.raises(ConfigError, match="warmup"):
        architecture("learned_muon", warmup=1.0)
    with pytest.raises(ConfigError, match="matrix"):
        architecture("learned_muon", default_role="orthogonal")
    rule = architecture("learned_muon")
    with pytest.raises(MissingHorizon):
        rule.init(rule.init_theta(jax.random.key(0)), tree(0))


@pytest.mark.parametrize("part", ["network", "signal", "blend"])
def test_a_part_that_is_left_out_is_one_that_says_nothing(part: str) -> None:
    """The rest acts the same; only what costs and changes nothing is left out."""
    whole = architecture("learned_muon")
    plain = architecture("learned_muon", **{part: False})
    theta = plain.init_theta(jax.random.key(1))
    assert part not in theta
    rng = np.random.default_rng(0)
    rest = jax.tree.map(
        lambda x: x + 0.2 * jnp.asarray(rng.standard_normal(jnp.shape(x)), jnp.float32),
        theta,
    )
    silent = {part: whole.init_theta(jax.random.key(1))[part]}
    if part == "blend" and "network" in rest:
        head = rest["network"]["head"]
        grown = {k: jnp.concatenate([v, 0.0 * v[..., :1]], -1) for k, v in head.items()}
        silent["network"] = {**rest["network"], "head": grown}
    params, grads = tree(0), gradients(1)
    expected = updates_of(whole, {**rest, **silent}, params, grads)
    found = updates_of(plain, rest, params, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found,
        expected,
    )


def test_the_signal_tells_progress_from_noise_from_overshooting() -> None:
    rule = architecture("learned_muon", network=False, blend=False)
    theta = rule.init_theta(jax.random.key(0))
    params, steps = tree(0), 120
    rng = np.random.default_rng(0)

    def share(grads: list[Any]) -> float:
        """What the momenta's confirmed share is on average at the end."""
        state = rule.init(theta, params, steps)
        step = jax.jit(lambda g, s: rule.update(theta, g, s, params)[1])
        for grad in grads:
            state = step(grad, state)
        total, weight, _ = np.asarray(state.shared.common.signal)
        return float(total / weight)

    def noise() -> Any:
        return jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params
        )

    one = tree(7)
    np.testing.assert_allclose(share([one] * steps), 1.0, atol=1e-3)
    turning = [jax.tree.map(lambda x, s=(-1.0) ** i: s * x, one) for i in range(steps)]
    np.testing.assert_allclose(share(turning), -1.0, atol=1e-3)
    assert abs(share([noise() for _ in range(steps)])) < 0.25
    # Whatever the gradients' scale; nothing is said of gradients that are zero.
    tiny = [jax.tree.map(lambda x: 1e-10 * x, g) for g in turning]
    np.testing.assert_allclose(share(tiny), -1.0, atol=1e-3)
    zeros = jax.tree.map(jnp.zeros_like, one)
    state = rule.init(theta, params, steps)
    _, state, _ = rule.update(theta, zeros, state, params)
    np.testing.assert_array_equal(np.asarray(state.shared.common.signal), 0.0)


def test_the_bundled_weights_and_starts_are_what_their_tool_makes() -> None:
    path = Path(__file__).parents[1] / "tools" / "learned_muon_weights.py"
    tool = runpy.run_path(str(path))
    for name, (make, file) in tool["MADE"].items():
        made, kept = make(), read_arrays(file)
        assert made.header["config"] == kept.header["config"], name
        assert made.arrays.keys() == kept.arrays.keys(), name
        for key, values in made.arrays.items():
            np.testing.assert_array_equal(values, kept.arrays[key], err_msg=key)
    bundled, start = (tool["MADE"][x][0]() for x in ("bundled", "elements_start"))
    assert start.arrays.keys() > bundled.arrays.keys()
    used = read_weights("learned_muon")
    assert used.header["config"] == bundled.header["config"]
    for key, values in bundled.arrays.items():
        np.testing.assert_array_equal(values, used.arrays[key], err_msg=key)
