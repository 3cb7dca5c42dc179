"""What `lopax.optimizer` adds to optax's form: horizon, accumulation, narrow momenta,
diagnostics, and stepping equal tensors together."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import Tracer
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
from lopax._core import lifting, tensor_rule
from lopax._core.errors import ConfigError
from lopax._core.places import Leaf
from lopax._core.tree import count_bytes
from lopax.architectures.described import XP
from lopax.blocks import narrow_momenta
from lopax.optax import AccumulationState, HorizonWarning
from lopax.rules import loss_history

PARAMS = {"w": params_tree()["dense"]["w"]}


def states_after(opt: Any, steps: int, params: Any = PARAMS) -> Any:
    """State after some steps on constant gradients and a falling loss."""

    def body(state: Any, t: Any) -> Any:
        updates, state = opt.update(params, state, params, value=2.0 / (1.0 + t))
        return state, updates

    run = quick_jit(lambda p: jax.lax.scan(body, opt.init(p), jnp.arange(float(steps))))
    return run(params)


# --- horizon ---------------------------------------------------------------------


def wrappers(opt: Any) -> dict[str, Any]:
    return {
        "alone": opt,
        "chain": optax.chain(optax.clip_by_global_norm(1.0), opt),
        "masked": optax.masked(opt, {"w": True}),
        "multi_steps": optax.MultiSteps(opt, 2),
        "groups": optax.multi_transform({"a": opt, "b": optax.sgd(0.1)}, {"w": "a"}),
        "injected": optax.inject_hyperparams(
            lambda lr: optax.chain(opt, optax.scale(lr))
        )(lr=1.0),
    }


@pytest.mark.parametrize("kind", wrappers(optax.identity()))
@pytest.mark.parametrize("name", ["celo", "celo_adam", "velo"])
def test_extending_a_fresh_state_is_a_run_of_that_length(name: str, kind: str):
    short, long = wrappers(make(name, 20))[kind], wrappers(make(name, 70))[kind]
    assert_same(lopax.extend(short.init(PARAMS), 70), long.init(PARAMS), 1e-6)
    inside = jax.jit(lambda p, n: lopax.extend(short.init(p), n))(PARAMS, 70)
    assert_same(inside, long.init(PARAMS), 1e-5)
    other = jax.tree.leaves(short.init(PARAMS)), jax.tree.leaves(long.init(PARAMS))
    assert any(not np.array_equal(a, b) for a, b in zip(*other, strict=True))


def test_extending_midway_keeps_the_averages_of_the_loss():
    state, _ = states_after(make("celo", 20), 9)
    after = lopax.extend(state, 200)
    old, new = (s.rule.shared.common.loss for s in (state, after))
    assert not np.allclose(old.decays, new.decays)

    def averages(h: Any) -> Any:
        return h.means / (1.0 - h.decays**h.count)

    np.testing.assert_allclose(averages(new), averages(old), rtol=2e-3)
    assert int(after.rule.num_steps) == 200 and int(after.rule.iteration) == 9
    assert_same(after.rule.tensors, state.rule.tensors, 0, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    assert_same(
        lopax.extend(twice, 200), jax.tree.map(lambda x: jnp.stack([x, x]), after)
    )


def test_a_loss_history_of_its_own_length_is_left_alone():
    short = loss_history.init(XP, jnp.asarray(10))
    kept = loss_history.retime(XP, short, jnp.asarray(500), jnp.asarray(900))
    assert_same(kept, short, 0, 0)


def test_extend_says_what_is_wrong():
    with pytest.raises(ConfigError, match="no state of a lopax optimizer in dict"):
        lopax.extend({"a": jnp.ones(3)}, 5)
    for bad in (0, -3, 2.5):
        with pytest.raises(ConfigError, match=f"num_steps = {bad}"):
            lopax.extend(make("celo").init(PARAMS), bad)


@pytest.mark.parametrize("name", NAMES)
def test_past_the_end_rules_see_a_run_that_is_just_done(name: str):
    """The fraction stops at 1: beyond the horizon, its length does not matter."""
    rule, theta = rule_of(name), theta_of(name)

    def update(horizon: Any, iteration: Any) -> Any:
        # All skipped, so that only the fraction differs, and no average.
        state = rule.init(theta, PARAMS, 9)._replace(
            iteration=iteration, skipped=iteration, num_steps=horizon
        )
        return rule.update(theta, PARAMS, state, PARAMS, value=1.0)[0]

    cases = [(10, 10), (10, 11), (10, 999), (1000, 999), (20, 10)]
    at_end, past, far, last, middle = quick_jit(
        lambda: [update(*map(jnp.int32, case)) for case in cases]
    )()
    assert_same(at_end, past, 0, 0)
    assert_same(at_end, far, 0, 0)
    if name != "learned_muon":  # whose steps fall to zero
        assert_same(at_end, last, 1e-2)  # the last step inside is not far from it
    if rule.needs_horizon:
        assert not np.allclose(at_end["w"], middle["w"], rtol=1e-5)


def test_info_warns_once_past_the_end_and_not_before():
    state, _ = states_after(make("celo", 7), 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lopax.info(state)["fraction_done"] == 1.0
    past, _ = states_after(make("celo", 7), 9)
    with pytest.warns(HorizonWarning, match=r"step 9 of a run of 7.*lopax.extend"):
        assert lopax.info(past)["fraction_done"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lopax.info(past)
        assert lopax.info(lopax.extend(past, 18))["fraction_done"] == 0.5


# --- accumulation ----------------------------------------------------------------


def test_accumulation_is_the_step_on_mean_gradient_and_mean_loss():
    """12 gradients in a rule trusted with 4 steps: three a step, one of them bad."""
    opt, plain = make("celo", 12, accumulate_beyond=4), make("celo", 4)
    factors = jnp.asarray([1.0, 2.0, 6.0, 1.0, jnp.nan, 3.0, jnp.nan, jnp.nan, jnp.nan])
    losses = 2.0 * factors

    def body(state: Any, given: Any) -> Any:
        f, loss = given
        grads = jax.tree.map(lambda p: f * p, PARAMS)
        updates, state = opt.update(grads, state, PARAMS, value=loss)
        return state, updates

    state, updates = quick_jit(
        lambda p: jax.lax.scan(body, opt.init(p), (factors, losses))
    )(PARAMS)
    expected, want = jax.jit(plain.init)(PARAMS), []
    for mean in (3.0, 2.0):
        grads = jax.tree.map(lambda p, m=mean: m * p, PARAMS)
        u, expected = jax.jit(plain.update)(grads, expected, PARAMS, value=2.0 * mean)
        want.append(u["w"])
    assert_same(updates["w"][2], want[0])
    assert_same(updates["w"][5], want[1])
    for i in (0, 1, 3, 4, 6, 7, 8):
        assert not np.any(updates["w"][i])
    found = lopax.info(state)
    assert found["gradients_per_step"] == 3 and found["num_steps"] == 4
    assert found["step"] == 3 and found["skipped"] == 1
    assert found["skipped_gradients"] == 4
    assert_same(state.inner.rule.tensors, expected.rule.tensors)
    longer = lopax.extend(state, 24)
    assert isinstance(longer, AccumulationState)
    assert lopax.info(longer)["num_steps"] == 8


def test_accumulation_only_beyond_the_limit_and_schedules_count_gradients():
    assert not isinstance(
        make("celo", 40, accumulate_beyond=40).init(PARAMS), AccumulationState
    )
    seen = []

    def schedule(step: Any) -> Any:
        seen.append(step)
        return 1.0

    opt = make("celo", 41, accumulate_beyond=20, lr_multiplier=schedule)
    state = opt.init(PARAMS)
    assert int(state.every) == 3
    inner = state.inner._replace(count=jnp.asarray(5, jnp.int32))
    state = state._replace(inner=inner, seen=jnp.asarray(2, jnp.int32))
    jax.eval_shape(lambda s: opt.update(PARAMS, s, PARAMS, value=1.0), state)
    assert len([x for x in seen if isinstance(x, Tracer)]) == 1
    for limit in (0, 2.5):
        with pytest.raises(ConfigError, match=f"accumulate_beyond = {limit}"):
            make("celo", 40, accumulate_beyond=limit)
    with pytest.raises(ConfigError, match="plain number"):
        make("celo", jnp.asarray(40), accumulate_beyond=10)


def test_accumulation_trains():
    _, _, losses = fit(make("celo_adam", 60, accumulate_beyond=20), params_tree(), 60)
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] == losses[2] > losses[3]


# --- bfloat16 momenta ------------------------------------------------------------


def test_stochastic_rounding_is_right_on_average_and_exact_where_it_can_be():
    x = jnp.asarray([1.001, -3.3333, 1e-20, 7e8], jnp.float32)
    many = jax.vmap(lambda t: narrow_momenta.round_stochastically(x, t))(
        jnp.arange(4000)
    )
    assert many.dtype == jnp.bfloat16
    np.testing.assert_allclose(many.astype(jnp.float32).mean(0), x, rtol=3e-4)
    assert len(np.unique(many[:, 0].astype(jnp.float32))) == 2
    exact = x.astype(jnp.bfloat16)
    again = narrow_momenta.round_stochastically(exact.astype(jnp.float32), jnp.int32(3))
    np.testing.assert_array_equal(again, exact)


def test_slow_momenta_do_not_freeze():
    """An average with decay 0.999 must reach a constant it is fed; rounded to nearest
    it stops far below."""
    target = jnp.linspace(0.5, 1.5, 64)

    def run(rounded: Any) -> Any:
        def body(m: Any, t: Any) -> Any:
            m = 0.999 * m.astype(jnp.float32) + 0.001 * target
            return rounded(m, t), None

        start = jnp.zeros(64, jnp.bfloat16)
        return jax.lax.scan(body, start, jnp.arange(6000))[0].astype(jnp.float32)

    found = jax.jit(lambda: run(narrow_momenta.round_stochastically))()
    nearest = jax.jit(lambda: run(lambda m, t: m.astype(jnp.bfloat16)))()
    assert float(jnp.max(jnp.abs(found / target - 1.0))) < 0.12
    assert abs(float(jnp.mean(found / target)) - 1.0) < 0.02
    assert float(jnp.mean(nearest / target)) < 0.6


WITHOUT_MOMENTA = (
    "l2lgd2",
    "l2o_gru",
    "l2o_lstm",
    "l3rs",
    "linear_optim",
    "optim4rl",
)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_momenta(name: str):
    if name in WITHOUT_MOMENTA:
        with pytest.raises(ConfigError, match=f"{name!r} has no momenta"):
            make(name, momentum_dtype="bfloat16")
        return
    wide, narrow = make(name), make(name, momentum_dtype="bfloat16")
    start = jax.eval_shape(narrow.init, PARAMS)
    kinds = {x.dtype for x in jax.tree.leaves(start.rule.tensors)}
    assert jnp.dtype(jnp.bfloat16) in kinds
    assert count_bytes(start) < count_bytes(jax.eval_shape(wide.init, PARAMS))
    _, plain, a = fit(wide, PARAMS, 20)
    _, state, b = fit(narrow, PARAMS, 20)
    np.testing.assert_allclose(a, b, rtol=0.02)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, plain)


def test_a_skipped_step_keeps_narrow_momenta_to_the_bit():
    opt = make("celo", momentum_dtype="bfloat16")
    state, _ = states_after(opt, 3)
    bad = {"w": PARAMS["w"].at[0, 0].set(jnp.inf)}
    _, after = jax.jit(opt.update)(bad, state, PARAMS, value=1.0)
    assert_same(after.rule.tensors, state.rule.tensors, 0, 0)
    assert int(after.rule.skipped) == 1


def test_an_unknown_momentum_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"'float16': must be one of 'float32'"):
        make("celo", momentum_dtype="float16")


# --- diagnostics -----------------------------------------------------------------


def test_info_tells_what_the_last_step_did():
    opt = make("celo", 10, report=True, lr_multiplier=0.5, weight_decay=0.1)
    params = params_tree()
    grads = jax.tree.map(lambda x: 5e3 * jnp.ones_like(x), params)
    updates, state = jax.jit(opt.update)(grads, opt.init(params), params, value=1.0)
    found = lopax.info({"any": ("tree", state)})
    assert all(type(x) is float for x in found.values())
    size = float(jnp.sqrt(jnp.mean(updates["dense"]["w"] ** 2)))
    weight = float(jnp.sqrt(jnp.mean(params["dense"]["w"] ** 2)))
    np.testing.assert_allclose(found["update_rms/dense/w"], size, rtol=1e-5)
    np.testing.assert_allclose(
        found["update_to_weight/dense/w"], size / weight, rtol=1e-5
    )
    assert found["clipped"] == 24 + 4
    assert (found["step"], found["num_steps"], found["skipped"]) == (1, 10, 0)
    assert 0 < found["step_scale"] < 1
    assert {k for k in found if k.startswith("update_rms/")} == {
        "update_rms/dense/w",
        "update_rms/dense/b",
    }
    nan = jnp.asarray(jnp.nan)
    _, state = jax.jit(opt.update)(grads, state, params, value=nan)
    assert lopax.info(state)["skipped"] == 1
    assert lopax.info(state)["step_scale"] == found["step_scale"]


def test_info_of_several_optimizers_and_of_none():
    opt: Any = optax.multi_transform(
        {"a": make("celo", 30), "b": make("adafac_mlp", None), "c": optax.sgd(1.0)},
        {"dense": {"w": "a", "b": "b"}},
    )
    found = lopax.info(opt.init(params_tree()))
    steps = [k for k in found if k.endswith("/step")]
    assert len(steps) == 2 and all("/a/" in k or "/b/" in k for k in steps)
    assert sum(k.endswith("num_steps") for k in found) == 1  # Adafac-MLP has none
    with pytest.raises(ConfigError, match="no state of a lopax optimizer"):
        lopax.info(optax.sgd(1.0).init(PARAMS))
    state = make("celo").init(PARAMS)
    with pytest.raises(ConfigError, match="outside jit"):
        jax.eval_shape(lambda s: lopax.info(s)["step"], state)
    with pytest.raises(ConfigError, match="leading axis"):
        lopax.info(jax.tree.map(lambda x: jnp.stack([x, x]), state))


def test_rule_info_agrees_with_the_update():
    rule, theta, params = rule_of("celo"), theta_of("celo"), params_tree()
    state = rule.init(theta, params, 10)
    updates, _, info = jax.jit(rule.update)(theta, params, state, params, value=1.0)
    rms = float(jnp.sqrt(jnp.mean(updates["dense"]["w"] ** 2)))
    np.testing.assert_allclose(info.update_rms["dense"]["w"], rms, rtol=1e-5)
    assert int(info.clipped) == 0 and not bool(info.skipped)


# --- equal tensors together --------------------------------------------------------


def test_equal_small_tensors_share_a_body_and_keep_their_numbers(monkeypatch):
    rule = lopax.architecture("celo", lstm=4, backend="plain")
    theta = rule.init_theta(jax.random.key(0))
    rng = np.random.default_rng(0)
    shapes = {"a": (5,), "b": (2, 3), "c": (5,), "d": (5,), "e": (2, 3), "f": (5,)}
    params, grads = (
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        for _ in range(2)
    )

    def step() -> Any:
        state = rule.init(theta, params, 5)
        _, state, _ = rule.update(theta, grads, state, params, value=1.0)
        return rule.update(theta, grads, state, params, value=1.0)[:2]

    def program_size() -> int:
        return len(str(jax.make_jaxpr(lambda: step())()))

    size, together = program_size(), quick_jit(step)()
    monkeypatch.setattr(type(rule), "group_key", lambda self, leaf: None)
    assert size < 0.8 * program_size()
    assert_same(together, quick_jit(lambda: step())(), 1e-5, 1e-8)


@pytest.mark.parametrize("name", ["celo2", "learned_muon"])
def test_the_first_states_of_many_tensors_are_made_by_one_program(monkeypatch, name):
    """The same values, and arrays of their own, which may be donated."""
    rule: Any = lopax.architecture(name)
    theta = rule.init_theta(jax.random.key(0))
    shapes = [(5,), (2, 3), (4, 2)] * (tensor_rule.INIT_TOGETHER // 3)
    params = {str(i): jnp.full(s, 0.1 * i) for i, s in enumerate(shapes)}
    together = rule.init(theta, params, 5)
    arrays = [x for x in jax.tree.leaves(together) if x.size]
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
    assert not any(x.weak_type for x in arrays)
    monkeypatch.setattr(tensor_rule, "INIT_TOGETHER", 1_000)
    assert_same(together, rule.init(theta, params, 5), 0.0, 0.0)


def test_only_like_goes_with_like():
    """Keys, shapes, dtypes and size decide; order and results stay."""
    leaves = [Leaf(i, str(i), (2,)) for i in range(8)]
    keys = ["k", "k", None, "k", "other", "k", "k", None]
    xs = [jnp.full((2 if i < 6 else 3,), float(i)) for i in range(8)]
    seen = []

    def double(leaf: Any, x: Any) -> Any:
        seen.append(int(leaf))
        return 2.0 * x

    found = lifting.map_equal_together(double, leaves, keys, [(x,) for x in xs])
    assert sorted(set(seen)) == [0, 2, 4, 6, 7]
    for x, y in zip(xs, found, strict=True):
        np.testing.assert_array_equal(2.0 * x, y)


def test_a_rule_s_own_weight_decay_is_reached_by_settings():
    rule = lopax.architecture("star")
    theta = rule.init_theta(jax.random.key(0))
    params, zero = {"w": jnp.ones((2, 3))}, {"w": jnp.zeros((2, 3))}
    opt = lopax.optimizer("star", theta=theta, settings={"weight_decay": 0.5})
    updates, _ = opt.update(zero, opt.init(params), params)
    (update,) = jax.tree.leaves(updates)
    np.testing.assert_allclose(update, -0.5)
    with pytest.raises(ConfigError, match="weight_decay = 2"):
        lopax.optimizer("star", theta=theta, settings={"weight_decay": 2.0})
