"""What would train nothing without a word, in JAX: tensors of zeros, runs past their
end, steps that are always skipped, factors far from one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import params_tree, rule_of, theta_of
from quick_compile import quick_jit

import lopax
from lopax._core.sizes import (
    FLOOR,
    LARGEST,
    LIMIT,
    VECTOR_FLOOR,
    SizeBounds,
    usual_size,
)
from lopax._core.warned import far_from_one
from lopax.architectures import ARCHITECTURES, architecture
from lopax.native import xla
from lopax.optax import from_rule, watch

SHAPES = {"vector": (6,), "matrix": (5, 12)}
RELATIVE = {"celo": {}, "velo": {"lstm": 16, "bank": 8, "bank_mult": 1.0}}
SMALL = {
    **RELATIVE,
    "l3rs": {"tensors": ("matrix:5,12", "vector:6")},
    "star": {"nominal": 0.0},
}


def tensors(factor, seed=0):
    """One tensor of each shape, of `factor` times the usual size."""
    found = {}
    for name, shape in SHAPES.items():
        x = jax.random.normal(jax.random.key(seed + len(shape)), shape)
        rms = jnp.sqrt(jnp.mean(jnp.square(x)))
        found[name] = x / rms * factor * usual_size(shape)
    return found


def updates_of(name, *starts, **settings):
    """The updates of the second of two steps with the same gradients, for each of
    some trees of parameters."""
    rule = architecture(name, **settings)
    theta = rule.init_theta(jax.random.key(3))
    grads = tensors(0.1, seed=1)

    def step(params, state):
        updates, state, _ = rule.update(theta, grads, state, params, value=1.0)
        return updates, optax.apply_updates(params, updates), state

    program, results = quick_jit(step), []
    for params in starts:
        _, params, state = program(params, rule.init(theta, params, 20))
        results.append(program(params, state)[0])
    return results


def test_the_usual_size_goes_by_the_fan_in():
    assert [usual_size(s) ** -2 for s in ((3,), (5, 2), (7, 5, 2), (3, 3, 4, 6))] == [
        pytest.approx(n) for n in (1.0, 5.0, 5.0, 36.0)
    ]
    # as torch stores them
    assert usual_size((2, 5), (1, 0)) == usual_size((5, 2))
    assert usual_size((6, 4, 3, 3), (1, 0)) == usual_size((3, 3, 4, 6))
    assert SizeBounds(FLOOR).of((0, 3)) == (FLOOR, LARGEST)


FLOORS = {"size_floor": FLOOR, "vector_floor": VECTOR_FLOOR}
BOUNDS: dict[str, dict[str, Any]] = {
    "celo": {**FLOORS, "size_limit": LIMIT},
    "velo": FLOORS,
}


@pytest.mark.parametrize("name", BOUNDS)
def test_steps_follow_the_size_between_its_bounds(name):
    """Nearly zero counts as the floor and huge as Celo's limit, plain and fused."""
    factors = (1e-4, 1e4) if name == "celo" else (1e-4,)
    starts, settings = [tensors(f) for f in factors], RELATIVE[name]

    def updates(**more):
        return updates_of(name, *starts, **settings, **more)

    published = updates(backend="plain")
    for backend in ("plain", "fused") if xla.why_not(4) is None else ("plain",):
        found = updates(backend=backend, **BOUNDS[name])
        for i, factor in enumerate(factors):
            for k, shape in SHAPES.items():
                rule: Any = architecture(name, **BOUNDS[name])
                least, most = rule.config.bounds.of(shape)
                size = math.sqrt((factor * usual_size(shape)) ** 2 + 1e-9)
                counted = min(max(size, least), most)
                expected = published[i][k] / size * counted
                np.testing.assert_allclose(found[i][k], expected, rtol=0.02)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_zeros_with_a_steady_gradient_move_as_other_tensors_do(name):
    """Not a thousand times less: every rule, one tensor of each rank."""
    settings = {**SMALL.get(name, {}), **BOUNDS.get(name, {})}
    rule: Any = architecture(name, **settings)
    if hasattr(rule.config, "backend"):
        settings = {**settings, "backend": "plain"}
    at_zero, usual = updates_of(name, tensors(0.0), tensors(1.0), **settings)
    for k in at_zero:
        moved, other = (float(jnp.max(jnp.abs(u[k]))) for u in (at_zero, usual))
        assert moved >= 2e-3 * other, k


def test_a_low_rank_adapter_trains_as_with_adamw():
    keys = iter(jax.random.split(jax.random.key(0), 300))
    change = jax.random.normal(next(keys), (16, 4)) @ jax.random.normal(
        next(keys), (4, 16)
    )
    start = {"a": jax.random.normal(next(keys), (16, 4)) / 4.0, "b": jnp.zeros((4, 16))}
    inputs = jax.random.normal(next(keys), (150, 64, 16))

    def loss_fn(params, x):
        return jnp.mean(jnp.square(x @ params["a"] @ params["b"] - x @ change / 40.0))

    def end(opt):
        @jax.jit
        def run(params):
            def one(carry, x):
                params, state = carry
                loss, grads = jax.value_and_grad(loss_fn)(params, x)
                updates, state = opt.update(grads, state, params, value=loss)
                return (optax.apply_updates(params, updates), state), loss

            return jax.lax.scan(one, (params, opt.init(params)), inputs)[1]

        losses = run(start)
        return losses[0], losses[-1]

    first, adamw = end(optax.with_extra_args_support(optax.adamw(1e-2)))
    for name in ("celo", "celo_adam", "celo2"):
        assert end(lopax.optimizer(name, num_steps=150))[1] < max(
            2.0 * adamw, 0.15 * first
        ), name


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch):
    monkeypatch.setattr(watch, "_said", set())


PARAMS = {"w": jnp.ones((3, 2)), "scale": jnp.ones(2)}


def states_of_skipped_steps(opt, count, loss=1.0, scale=jnp.nan):
    grads = {"w": jnp.ones((3, 2)), "scale": jnp.full(2, scale)}
    state = opt.init(PARAMS)
    update = jax.jit(lambda s: opt.update(grads, s, PARAMS, value=loss)[1])
    for _ in range(count):
        state = update(state)
    jax.effects_barrier()
    return state


@pytest.mark.parametrize("name", ["celo", "celo2", "celo_adam"])
def test_info_names_the_tensor_that_skips_every_step(name):
    opt = lopax.optimizer(name, num_steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = states_of_skipped_steps(opt, 9)
        assert lopax.info(state)["skipped_in_a_row"] == 9.0
    state = states_of_skipped_steps(opt, 12)
    with pytest.warns(lopax.SkippedWarning, match="12 steps.*gradient of 'scale'"):
        lopax.info(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lopax.info(state)


def test_info_says_that_it_is_the_loss():
    state = states_of_skipped_steps(
        lopax.optimizer("celo", num_steps=50), 10, jnp.inf, 1.0
    )
    with pytest.warns(lopax.SkippedWarning, match="the loss is not finite"):
        lopax.info(state)


def test_a_step_made_to_warn_warns_by_itself():
    opt = lopax.optimizer("celo", num_steps=50, warn=True)
    with pytest.warns(lopax.SkippedWarning, match="10 steps.*gradient of 'scale'"):
        states_of_skipped_steps(opt, 11)
    opt = lopax.optimizer("celo", num_steps=2, warn=True)
    with pytest.warns(lopax.HorizonWarning, match="step 3 of a run of 2"):
        states_of_skipped_steps(opt, 4, scale=1.0)


def stepping(opt):
    """A function to the state after a step for each of some trees of gradients."""
    update = jax.jit(lambda g, s, p: opt.update(g, s, p, value=1.0)[1])

    def after(params, *gradients):
        state = opt.init(params)
        for grads in gradients:
            state = update(grads, state, params)
        jax.effects_barrier()
        return state

    return after


ONES = jax.tree.map(jnp.ones_like, PARAMS)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
NO_MATRIX = {"w": ZEROS["w"], "scale": ONES["scale"]}
LEAST = {"w": ZEROS["w"].at[2, 1].set(1e-30), "scale": ZEROS["scale"]}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_what_is_reported_of_gradients_that_are_zero(name):
    rule, theta = rule_of(name), theta_of(name)
    params = params_tree() if name == "l3rs" else PARAMS

    def idle(grads):
        if name == "l3rs":
            grads = {"dense": dict(zip("bw", jax.tree.leaves(grads), strict=True))}
            sizes = jax.tree.map(jnp.max, grads)
            grads = jax.tree.map(lambda p, m: jnp.full_like(p, m), params, sizes)
        state = rule.init(theta, params, 9)
        return rule.update(theta, grads, state, params, value=1.0)[2].idle

    # Nothing else of the step is computed.
    idle = jax.jit(idle)
    assert idle(ZEROS) and idle(NO_MATRIX)
    assert not idle(ONES) and not idle(LEAST)
    assert not idle(jax.tree.map(lambda x: x * jnp.nan, ONES))


@pytest.mark.parametrize("options", [{}, {"accumulate_beyond": 30}])
def test_info_says_that_nothing_had_a_gradient(options):
    opt = from_rule(
        rule_of("learned_adam"), theta_of("learned_adam"), num_steps=60, **options
    )
    every, after_steps = 2 if options else 1, stepping(opt)

    def said(params, *gradients):
        watch._said.clear()
        found: dict[str, float] = {}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(2):
                found = lopax.info(after_steps(params, *gradients))
        assert not {"idle", "calls", "flaw"} & found.keys()
        return [str(w.message) for w in told if w.category is lopax.SkippedWarning]

    for zero in (ZEROS, NO_MATRIX):
        assert not said(PARAMS, *[zero] * 9 * every)
        (text,) = said(PARAMS, *[zero] * 11 * every)
        assert "first 11 steps" in text and "exactly zero" in text
    for other in (ONES, LEAST):
        for at in (0, 9, 11):
            rest = 11 - at
            assert not said(PARAMS, *([ZEROS] * at + [other] + [ZEROS] * rest) * every)
    vectors = {"scale": PARAMS["scale"]}
    assert not said(vectors, *[{"scale": ONES["scale"]}] * 12 * every)
    assert said(vectors, *[{"scale": ZEROS["scale"]}] * 12 * every)
    assert not said({}, *[{}] * 12 * every)


def test_a_group_without_gradients_is_named_and_a_step_may_say_so_itself():
    part = lopax.optimizer("celo2", num_steps=50)
    labels = {"w": "body", "scale": "head"}
    opt = optax.multi_transform({"body": part, "head": part}, labels)
    state = stepping(opt)(PARAMS, *[NO_MATRIX] * 10)
    with pytest.warns(lopax.SkippedWarning, match=r"matrices under '.*body.*'"):
        lopax.info(state)
    opt = lopax.optimizer("celo2", num_steps=50, warn=True)
    with pytest.warns(lopax.SkippedWarning, match="first 10 steps") as told:
        stepping(opt)(PARAMS, *[ZEROS] * 12)
    assert len(told) == 1


@pytest.mark.parametrize("factor", [1e-3, -1e-3, 100.0, optax.constant_schedule(1e-3)])
def test_a_learning_rate_is_taken_for_a_mistake(factor):
    with pytest.warns(lopax.StepSizeWarning, match="lr_multiplier = .*0.001|100"):
        lopax.optimizer("celo2", num_steps=50, lr_multiplier=factor)


def test_factors_around_one_schedules_and_traced_ones_are_not():
    assert not any(map(far_from_one, (0.0, 0.05, -1.0, 1.0, 20.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (1.0, 0.3, 0.0, optax.linear_schedule(1e-3, 1.0, 10)):
            lopax.optimizer("celo2", num_steps=50, lr_multiplier=factor)
        lopax.scale_by("celo2", num_steps=50)


def test_warnings_are_one_family():
    kinds = ("Growth", "Horizon", "Skipped", "Stack", "StepSize")
    for kind in kinds:
        assert issubclass(getattr(lopax, f"{kind}Warning"), lopax.LopaxWarning)
    assert issubclass(lopax.LopaxWarning, UserWarning)
