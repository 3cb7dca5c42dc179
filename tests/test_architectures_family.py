"""Every registered architecture against one table of properties.

One program is compiled per architecture: two thetas at once, four steps in a scan, on
tensors of rank 0 to 5. Each property is a choice of its inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_jit

from lopax._core import tree as trees
from lopax._core.errors import (
    ConfigError,
    MissingHorizon,
    MissingLoss,
    MissingParams,
    StructureMismatch,
)
from lopax.architectures import ARCHITECTURES, architecture, config_of, l3rs
from lopax.nets import dense_mlp


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the property table states about an architecture."""

    count: int  # meta-parameters with default settings, as stored here
    published: int  # meta-parameters of the published tree
    settings: dict[str, Any]  # smaller sizes for the tests
    # The same theta where tensors "rank2_a" and "rank2_b" have changed their roles,
    # for rules whose theta belongs to the tensors of one network.
    swapped: Callable[[Any], Any] = lambda theta: theta


STEPS = 4
SHAPES = {
    "rank0": (),
    "rank1": (3,),
    "rank2_a": (4, 3),
    "rank2_b": (4, 3),
    "rank3": (2, 3, 4),
    "rank4": (2, 2, 3, 2),
    "rank5": (2, 1, 2, 2, 3),
    "none": (0, 3),
}
TENSORS = l3rs.tensors_of({k: np.zeros(v) for k, v in SHAPES.items()})


def swapped_embeddings(theta: Any) -> Any:
    """For thetas [2]; embeddings are in the order of `TENSORS`."""
    names = [text.partition(":")[0] for text in TENSORS]
    a, b = names.index("rank2_a"), names.index("rank2_b")
    order = [{a: b, b: a}.get(i, i) for i in range(len(names))]
    return {**theta, "embedding": theta["embedding"][:, np.asarray(order)]}


TABLE = {
    "celo": Row(35_803, 37_089, {"lstm": 8}),
    "celo_adam": Row(35_649, 36_865, {"lstm": 8}),
    "celo2": Row(329, 347, {}),
    "celo2_base": Row(329, 347, {}),
    "velo": Row(2_303_233, 2_320_385, {"lstm": 8, "bank": 4}),
    "adafac_mlp": Row(197, 197, {}),
    "plain_mlp": Row(1_762, 1_762, {"hidden": 8}),
    "mulo": Row(2_409, 2_409, {"hidden": 8}),
    "star": Row(202, 207, {}),
    "rnn_mlp": Row(35_799, 35_799, {"lstm": 8, "hidden": 8}),
    "nn_adam": Row(21_896, 21_896, {"lstm": 8}),
    "l2o_lstm": Row(5_141, 5_141, {"lstm": 4}),
    "l2o_gru": Row(3_361, 3_361, {"units": 4}),
    "optim4rl": Row(514, 514, {"units": 4}),
    "linear_optim": Row(275, 275, {"units": 4}),
    "l2lgd2": Row(281, 281, {"units": 4}),
    "l3rs": Row(451, 451, {"tensors": TENSORS, "hidden": 8}, swapped_embeddings),
    "learned_muon": Row(197, 197, {}),
    "learned_sgd": Row(2, 2, {}),
    "learned_adam": Row(4, 4, {}),
    "scheduled_adam": Row(12, 12, {"knots": 3}),
}
NAMES = sorted(TABLE)


@pytest.fixture(autouse=True)
def _compact_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as matrix products: the same result, a quarter of the compile time.

    The golden files test the unrolled form.
    """
    monkeypatch.setattr(dense_mlp, "UNROLLED_UP_TO", 0)


@functools.cache
def rule_of(name: str) -> Any:
    return architecture(name, **TABLE[name].settings)


@functools.cache
def thetas_of(name: str) -> Any:
    """Two different thetas, stacked; both away from special starting points."""
    rule = rule_of(name)

    def one(seed: int) -> Any:
        key = jax.random.key(seed)
        theta = rule.init_theta(key)
        leaves, treedef = jax.tree.flatten(theta)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        moved = [
            x + 0.05 * jax.random.normal(k, x.shape)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return treedef.unflatten(moved)

    return jax.tree.map(lambda a, b: jnp.stack([a, b]), one(0), one(1))


@functools.cache
def program_of(name: str) -> Any:
    """(thetas, params, grads [T], losses [T]) -> updates [2, T], final state, infos.

    Unknown keywords are passed on purpose. The scan fails to trace if the state's
    structure, shapes or dtypes change.
    """
    rule = rule_of(name)

    def run(theta: Any, params: Any, grads: Any, losses: Any) -> Any:
        def step(carry: Any, given: Any) -> Any:
            params, state = carry
            grad, loss = given
            updates, state, info = rule.update(
                theta, grad, state, params, value=loss, unknown=1, value_fn=None
            )
            params = jax.tree.map(lambda p, u: p + u, params, updates)
            return (params, state), (updates, info)

        start = (params, rule.init(theta, params, STEPS))
        (_, state), (updates, infos) = jax.lax.scan(step, start, (grads, losses))
        return updates, state, infos

    return quick_jit(jax.vmap(run, in_axes=(0, None, None, None)))


def params_and_grads(scale: float = 1.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reproducible parameters, the one of rank 5 in bfloat16, and gradients [T]."""
    rng = np.random.default_rng(0)
    params, grads = {}, {}
    for name, shape in SHAPES.items():
        dtype = jnp.bfloat16 if name == "rank5" else jnp.float32
        params[name] = jnp.asarray(rng.normal(size=shape), dtype)
        grads[name] = jnp.asarray(scale * rng.normal(size=(STEPS, *shape)), dtype)
    return params, grads


def run(name: str, params: Any, grads: Any, losses: Any = None, **kwargs: Any) -> Any:
    losses = jnp.asarray([2.0, 1.5, 1.7, 1.2] if losses is None else losses)
    return program_of(name)(
        kwargs.get("thetas", thetas_of(name)), params, grads, losses
    )


def assert_finite(*values: Any) -> None:
    for path, leaf in trees.named_leaves(values).items():
        assert np.all(np.isfinite(np.asarray(leaf, np.float32))), path


def test_the_table_covers_the_registry() -> None:
    assert set(TABLE) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_meta_parameters(name: str) -> None:
    theta = jax.eval_shape(architecture(name).init_theta, jax.random.key(0))
    assert trees.count_elements(theta) == TABLE[name].count
    assert TABLE[name].count <= TABLE[name].published
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(theta))


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_steps(name: str) -> None:
    """Finite, of the parameters' dtypes, not zero, different for different thetas,
    and the same thetas in the other order give the same results in the other order."""
    params, grads = params_and_grads()
    updates, state, infos = run(name, params, grads)
    assert_finite(updates, state, infos)
    for key, update in updates.items():
        assert update.dtype == params[key].dtype, key
        assert update.shape == (2, STEPS, *params[key].shape), key
        if update.size:
            assert np.abs(np.asarray(update, np.float32)).max() > 0.0, key
    matrix = np.asarray(updates["rank2_a"])
    assert not np.allclose(matrix[0], matrix[1], rtol=1e-3)
    assert not np.any(infos.skipped)
    swapped = jax.tree.map(lambda x: x[::-1], thetas_of(name))
    other, _, _ = run(name, params, grads, thetas=swapped)
    np.testing.assert_allclose(other["rank2_a"][::-1], matrix, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_swapping_two_tensors_swaps_their_updates(name: str) -> None:
    params, grads = params_and_grads()

    def swap(tree: dict[str, Any]) -> dict[str, Any]:
        return {**tree, "rank2_a": tree["rank2_b"], "rank2_b": tree["rank2_a"]}

    one, _, _ = run(name, params, grads)
    other = TABLE[name].swapped(thetas_of(name))
    two, _, _ = run(name, swap(params), swap(grads), thetas=other)
    for key in SHAPES:
        got = np.asarray(swap(two)[key], np.float32)
        want = np.asarray(one[key], np.float32)
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-7, err_msg=key)


@pytest.mark.parametrize("case", ["zero_params", "zero_grads", "huge", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_but_finite_inputs(name: str, case: str) -> None:
    scale = {"zero_grads": 0.0, "huge": 1e30, "tiny": 1e-30}.get(case, 1.0)
    params, grads = params_and_grads(scale)
    if case == "zero_params":
        params = jax.tree.map(jnp.zeros_like, params)
    losses = [1e30, -1e30, 0.0, 1e-30] if case == "huge" else None
    updates, state, infos = run(name, params, grads, losses)
    assert_finite(updates, state)
    assert not np.any(infos.skipped)
    if case == "huge":
        assert np.all(infos.clipped > 0)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_poisoned_gradient_changes_nothing(name: str, poison: float) -> None:
    params, grads = params_and_grads()
    grads["rank1"] = grads["rank1"].at[1, 0].set(poison)
    updates, state, infos = run(name, params, grads)
    assert_finite(updates, state)
    np.testing.assert_array_equal(infos.skipped[0], [False, True, False, False])
    for key, update in updates.items():
        assert not np.any(np.asarray(update, np.float32)[:, 1]), key
    np.testing.assert_array_equal(state.skipped, [1, 1])


@pytest.mark.parametrize("name", NAMES)
def test_a_poisoned_loss_changes_nothing(name: str) -> None:
    params, grads = params_and_grads()
    updates, state, infos = run(name, params, grads, [1.0, np.nan, 1.0, 1.0])
    assert_finite(updates, state)
    np.testing.assert_array_equal(infos.skipped[0], [False, True, False, False])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_said(name: str) -> None:
    rule = rule_of(name)
    theta = jax.tree.map(lambda x: x[0], thetas_of(name))
    params, _ = params_and_grads()
    if rule.needs_horizon:
        with pytest.raises(MissingHorizon, match="num_steps"):
            rule.init(theta, params)
        with pytest.raises(MissingHorizon, match="num_steps"):
            rule.transformation(theta)
    else:
        rule.init(theta, params)
    state = rule.init(theta, params, 10)
    if rule.needs_loss:
        with pytest.raises(MissingLoss, match="value"):
            rule.update(theta, params, state, params)
    with pytest.raises(MissingParams):
        rule.update(theta, params, state, None, value=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_theta_round_trip_and_mismatch(name: str) -> None:
    rule = rule_of(name)
    theta = jax.tree.map(lambda x: x[1], thetas_of(name))
    arrays = rule.theta_to_arrays(theta)
    again = rule.theta_from_arrays(arrays)
    jax.tree.map(np.testing.assert_array_equal, theta, again)
    first = next(iter(arrays))
    arrays[first] = np.zeros((7, 7), np.float32)
    with pytest.raises(StructureMismatch, match=r"7,7"):
        rule.theta_from_arrays(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_a_file(name: str) -> None:
    """Plain values rebuild the same rule, as when weights are loaded."""
    settings = json.loads(json.dumps(config_of(rule_of(name))))
    assert architecture(name, **settings).config == rule_of(name).config  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("velo", {"bank": 0}, "bank"),
        ("star", {"nominal_direction": "up"}, "adam_aggmo"),
        ("celo2", {"default_role": "muon"}, "orthogonal"),
        ("celo2", {"schedule": "linear"}, "cosine"),
        ("celo2", {"convolutions": "flattened"}, "slices"),
        ("celo2", {"routes": [{"role": "adam", "name": "("}]}, "regular expression"),
        ("mulo", {"hidden": 0}, "hidden"),
        ("nn_adam", {"beta1": 1.0}, "beta1"),
        ("scheduled_adam", {"knots": 1}, "knots"),
        ("l2o_lstm", {"log_range": 0.0}, "log_range"),
        ("l3rs", {"directions": []}, "name at least one"),
        ("l3rs", {"directions": [{"name": "adam", "settings": {"b3": 1}}]}, "b3"),
        ("l3rs", {"tensors": ["w", "w"]}, "tensors_of"),
    ],
)
def test_bad_settings_are_named(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        architecture(name, **settings)


def celo2_moves(grads: Any, num_steps: int | None = None, **settings: Any) -> Any:
    """What Celo2 adds to a tensor, [T, *s], with one theta and Adam nowhere."""
    rule = architecture("celo2", routes=(), **settings)
    theta = rule.init_theta(jax.random.key(3))
    params = {"w": jnp.zeros(grads.shape[1:])}

    def step(state: Any, grad: Any) -> tuple[Any, Any]:
        updates, state, info = rule.update(theta, {"w": grad}, state, params)
        return state, (updates["w"], info.step_scale)

    state = rule.init(theta, params, num_steps)
    return jax.lax.scan(step, state, grads)[1]


def test_celo2_sees_a_flat_convolution_as_one_matrix() -> None:
    grads = jax.random.normal(jax.random.key(0), (3, 3, 3, 4, 8))
    flat, _ = celo2_moves(grads, convolutions="flat")
    matrix, _ = celo2_moves(grads.reshape(3, 36, 8))
    np.testing.assert_allclose(flat.reshape(3, 36, 8), matrix, atol=1e-9)
    slices, _ = celo2_moves(grads)
    assert np.abs(slices - flat).max() > 1e-4
    # A stack of matrices is no convolution.
    stack = grads[:, 0]
    np.testing.assert_array_equal(
        celo2_moves(stack, convolutions="flat")[0], celo2_moves(stack)[0]
    )


def test_celo2_steps_fall_with_the_schedule() -> None:
    grads = jax.random.normal(jax.random.key(0), (6, 5, 4))
    constant, _ = celo2_moves(grads)
    cosine, scale = celo2_moves(grads, num_steps=4, schedule="cosine")
    factor = np.array([1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0, 0.0])
    np.testing.assert_allclose(scale, 1e-3 * factor, atol=1e-9)
    np.testing.assert_allclose(cosine, factor[:, None, None] * constant, atol=1e-8)
    with pytest.raises(MissingHorizon):
        celo2_moves(grads, schedule="cosine")
