"""What programs hand to an optax form: a right step, or an error that says what is
wrong."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import (
    NAMES,
    compact_programs,  # noqa: F401
    make,
    params_tree,
)
from quick_compile import quick_compilation, quick_jit  # noqa: F401

import lopax
from lopax._core import tree as trees
from lopax._core.errors import ConfigError, LopaxError, StructureMismatch
from lopax.architectures.described import XP
from lopax.rules import unit_ratios
from lopax.rules.form import Place, complete

CHEAP = "learned_adam"


def shapes_of_a_step(opt: Any, state: Any, params: Any, value: Any = 1.0) -> Any:
    return jax.eval_shape(lambda: opt.update(params, state, params, value=value))


@pytest.fixture(scope="module")
def states() -> dict[str, Any]:
    """Of every rule, before the first step, and what is none."""
    params = params_tree()
    found = {n: jax.eval_shape(make(n).init, params) for n in NAMES}
    found = {
        n: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), s)
        for n, s in found.items()
    }
    longer = make(CHEAP, accumulate_beyond=10)
    others = {"adam": optax.adam(0.1).init(params), "none": None, "a dict": {"rule": 1}}
    return {**found, **others, "accumulating": longer.init(params)}


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_another_rule_is_refused(name: str, states: Any) -> None:
    """Unless nothing tells the two apart, as of STAR and Adafac-MLP."""
    params = params_tree()
    own = jax.tree.structure(states[name]), trees.describe(states[name])
    for state in states.values():
        if (jax.tree.structure(state), trees.describe(state)) == own:
            shapes_of_a_step(make(name), state, params)
            continue
        with pytest.raises(StructureMismatch, match="state"):
            shapes_of_a_step(make(name), state, params)
    with pytest.raises(StructureMismatch, match="accumulates gradients"):
        shapes_of_a_step(make(name, accumulate_beyond=10), states[name], params)


def test_an_error_of_the_step_itself_stays_what_it_is() -> None:
    params = params_tree()
    opt = make(
        CHEAP, num_steps=jnp.asarray(5), lr_multiplier=lambda count: {}["no such"]
    )
    with pytest.raises(KeyError, match="no such"):
        shapes_of_a_step(opt, opt.init(params), params)


@pytest.mark.parametrize(
    "value", ["1.0", b"1", {"loss": 1.0}, [1.0], np.array("1"), object(), 1j]
)
def test_what_is_no_loss_is_refused(value: Any) -> None:
    params = params_tree()
    for opt in (make("celo"), make(CHEAP), make(CHEAP, accumulate_beyond=10)):
        with pytest.raises(ConfigError, match="the loss must be"):
            shapes_of_a_step(opt, opt.init(params), params, value)


@pytest.mark.parametrize("setting", ["lr_multiplier", "weight_decay"])
def test_a_factor_is_one_number_in_whatever_form(setting: str) -> None:
    params = {"scalar": jnp.ones(()), "w": jnp.ones((3, 2))}

    def made(factor: Any) -> Any:
        opt = make(CHEAP, **{setting: factor})
        return opt.update(params, opt.init(params), params, value=1.0)[0]

    want = made(0.5)
    for factor in (np.float32(0.5), jnp.full((), 0.5), jnp.full((1,), 0.5)):
        found = made(factor)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
        assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(want)))
    for factor in (jnp.ones(2), np.ones((0,)), "0.5", None, [0.5]):
        with pytest.raises(LopaxError, match=setting):
            made(factor)


def test_no_number_is_below_what_a_program_may_take_for_zero() -> None:
    """XLA on a CPU flushes such numbers in float32; logarithms become infinite."""
    least = float(np.finfo(np.float32).tiny)
    for path in sorted(Path(lopax.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, float):
                # Smaller ones are meant for numpy's float64.
                fine = not 1e-60 < node.value < least
                assert fine, f"{path.name}:{node.lineno}: {node.value}"


@pytest.mark.parametrize("name", NAMES)
def test_zeros_of_every_kind_under_debug_nans(name: str) -> None:
    """Parameters that start at zero, as a last layer or a bias does."""
    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
    if name == "l3rs":
        params = jax.tree.map(jnp.zeros_like, params_tree())
    opt = make(name)
    state = quick_jit(opt.init)(params)
    step = quick_jit(lambda g, s, p: opt.update(g, s, p, value=0.0))
    with jax.debug_nans(True):
        updates, state = step(params, state, params)
        assert not any(np.any(u) for u in jax.tree.leaves(updates))
        step(jax.tree.map(jnp.ones_like, params), state, params)


def test_the_size_of_zeros_has_a_kind_and_a_derivative() -> None:
    """Where a program flushes small numbers, too."""

    def sizes(x: Any) -> Any:
        place = Place(x.shape)
        return complete(unit_ratios.measure(XP, place, x, unit_ratios.MATRIX))

    for x in (jnp.zeros((4, 3)), jnp.full((4, 3), 1e-40), jnp.ones((4, 3))):
        found = jax.jit(sizes)(x)
        assert found[1] == unit_ratios.MATRIX and np.isfinite(found[0])
    for x in (jnp.zeros((4, 3)), jnp.ones((4, 3))):
        assert np.all(np.isfinite(jax.jit(jax.grad(lambda x: sizes(x)[0]))(x)))


@pytest.mark.parametrize("name", ["celo", CHEAP, "learned_muon"])
@pytest.mark.parametrize("way", ["schedule", "decay", "injected", "accumulating"])
def test_a_factor_that_is_not_finite_is_a_skipped_step(name: str, way: str) -> None:
    """As a schedule makes it that divides by zero: parameters stay, and it is said."""

    def schedule(count: Any) -> Any:
        return jnp.where(count == 1, jnp.nan, 1.0)

    if way == "schedule":
        opt = make(name, lr_multiplier=schedule)
    elif way == "accumulating":
        opt = make(name, lr_multiplier=schedule, accumulate_beyond=50)
    else:
        setting = "lr_multiplier" if way == "injected" else "weight_decay"
        opt = optax.inject_hyperparams(lambda x: make(name, **{setting: x}))(
            schedule if way == "injected" else lambda count: 0.1 * schedule(count)
        )
    params = params_tree()
    state = opt.init(params)
    step = quick_jit(lambda p, s: opt.update(p, s, p, value=1.0))
    for count in range(3):
        updates, state = step(params, state)
        moved = [bool(np.any(u)) for u in jax.tree.leaves(updates)]
        assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))
        assert all(moved) if count != 1 else not any(moved)
        assert lopax.info(state)["skipped"] == (count > 0)


def test_a_schedule_of_several_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match="lr_multiplier"):
        make(CHEAP, lr_multiplier=lambda _: jnp.ones(2))
