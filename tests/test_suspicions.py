"""What is said of parameters that a rule is about to take for something else."""

from __future__ import annotations

import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import NAMES, SETTINGS, rule_of, theta_of

import lopax
from lopax._core import suspicions
from lopax._core.errors import ConfigError
from lopax._core.numbers import check_factor, whole_steps
from lopax._core.sizes import LIMIT, SizeBounds
from lopax.architectures import ARCHITECTURES
from lopax.optax import watch

STACKED = {
    "dense": {"kernel": jnp.ones((6, 8, 4)), "bias": jnp.ones((6, 4))},
    "torch_like": {"weight": jnp.ones((6, 4, 8)), "bias": jnp.ones((6, 4))},
    "attention": {"kernel": jnp.ones((6, 8, 2, 4)), "bias": jnp.ones((6, 4))},
    "experts": {"w": jnp.ones((3, 8, 4)), "b": jnp.ones((3, 4))},
}
APART = {
    "dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)},
    "heads": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))},
    "convolution": {"kernel": jnp.ones((3, 3, 8, 4)), "bias": jnp.ones(4)},
    "one layer": {"kernel": jnp.ones((1, 8, 4)), "bias": jnp.ones((1, 4))},
    "scalars": {"a": jnp.ones(()), "bias": jnp.ones(())},
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(watch, "_said", set())


@pytest.mark.parametrize(
    ("name", "case"), [("celo2", "dense"), *(("celo", case) for case in STACKED)]
)
def test_a_stack_is_said_once_with_the_route_that_ends_it(name, case):
    params = {"layers": STACKED[case]}
    opt = lopax.optimizer(name, num_steps=9)
    with pytest.warns(lopax.StackWarning, match=r"'layers'") as told:
        jax.eval_shape(opt.init, params)
    jax.eval_shape(opt.init, params)
    assert len(told) == 1
    text = re.search(r"name='(.+?)'", str(told[0].message))
    assert text
    route = lopax.Route(name=text[1], stack_axes=(0,))
    watch._said.clear()
    opt = lopax.optimizer(name, num_steps=9, routes=[route])
    jax.eval_shape(opt.init, params)


def test_a_stack_without_a_module_is_seen():
    with pytest.warns(lopax.StackWarning, match="these parameters"):
        lopax.optimizer("celo", num_steps=9).init(STACKED["dense"])


@pytest.mark.parametrize("case", APART)
def test_ordinary_layers_are_no_stack(case):
    lopax.optimizer("celo", num_steps=9).init({"layer": APART[case]})


@pytest.mark.parametrize("name", [n for n in NAMES if not rule_of(n).sees_tensors])
def test_rules_that_see_elements_need_no_route(name):
    """Their step of a stack is the steps of the tensors, to the bit or nearly."""
    rule, theta, rng = rule_of(name), theta_of(name), np.random.default_rng(0)

    def made(params: Any) -> Any:
        opt = rule.transformation(theta, 9)
        state, moves = opt.init(params), params
        for _ in range(2):
            moves, state = opt.update(params, state, params, value=1.0)
            params = optax.apply_updates(params, moves)
        return moves

    whole = jnp.asarray(rng.normal(size=(3, 4, 5)) * [[[0.1]], [[1.0]], [[9.0]]])
    whole = whole.astype(jnp.float32)
    together = made({"w": whole})["w"]
    for i in range(3):
        alone = made({"w": whole[i]})["w"]
        np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-8)


def test_attention_under_the_bundled_celo_adam():
    params = {"block": {"self_attn": {"kernel": jnp.ones((4, 4))}}}
    with pytest.warns(lopax.StepSizeWarning, match="lr_multiplier=0.3") as told:
        for _ in range(2):
            lopax.optimizer("celo_adam", num_steps=9).init(params)
    assert len(told) == 1
    watch._said.clear()
    lopax.optimizer("celo_adam", num_steps=9, lr_multiplier=0.3).init(params)
    theta = lopax.load_theta("celo_adam")
    lopax.optimizer("celo_adam", num_steps=9, theta=theta).init(params)
    lopax.optimizer("celo", num_steps=9).init(params)
    jax.eval_shape(lopax.optimizer("celo", num_steps=9).init, params)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("layers/0/self_attn/in_proj_weight", True),
        ("transformer/h/0/attn/c_attn/weight", True),
        ("MultiHeadDotProductAttention_0/query/kernel", True),
        ("encoder.layer.0.attention.self.query.weight", True),
        ("model/layers/3/q_proj/weight", True),
        ("dense/kernel", False),
        ("conv1/weight", False),
        ("patterns/w", False),
    ],
)
def test_attention_goes_by_the_usual_names(name, is_one):
    assert (suspicions.attention_in(["a/b", name]) is not None) == is_one


def test_a_table_of_standard_normal_numbers_is_not_limited():
    """In JAX its fan-in is the number of entries."""
    for shape in ((50_257, 64), (262_144, 768)):
        assert SizeBounds(limit=LIMIT).of(shape)[1] > 1.5


GOOD = [7, 7.0, np.int64(7), np.float32(7), np.array([7]), jnp.int32(7)]
BAD: list[Any] = [0, -1, 2.5, 3e9, True, np.bool_(True), "7", b"7", None, 7j]
BAD += [float("nan"), float("inf"), [7, 8], np.array([True]), {}, Ellipsis]


@pytest.mark.parametrize("number", GOOD, ids=repr)
def test_numbers_of_steps(number):
    assert whole_steps(number) == 7


@pytest.mark.parametrize("number", BAD, ids=repr)
def test_what_is_no_number_of_steps(number):
    with pytest.raises(ConfigError, match="num_steps = "):
        whole_steps(number)


@pytest.mark.parametrize("value", ["1", None, float("nan"), float("inf"), 1j, [1.0]])
def test_what_is_no_factor(value):
    with pytest.raises(ConfigError, match="lr_multiplier = "):
        lopax.optimizer("celo", num_steps=9, lr_multiplier=value)
    with pytest.raises(ConfigError, match="weight_decay = "):
        lopax.optimizer("celo", num_steps=9, weight_decay=value)


def test_factors():
    for value in (0, 1.0, np.float32(2.0), jnp.float32(1.0)):
        check_factor("lr", value)
    check_factor("lr", -1, negative=True)
    with pytest.raises(ConfigError, match=">= 0"):
        check_factor("lr", -1)


def test_flags_that_lint_programs_where_an_optimizer_is_made():
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        warnings.catch_warnings(),
    ):
        for name in sorted(ARCHITECTURES):
            rule = lopax.architecture(name, **SETTINGS.get(name, {}))
            theta = jax.eval_shape(rule.init_theta, jax.random.key(0))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), theta)
            rule.theta_from_arrays(rule.theta_to_arrays(zeros))
        for name in lopax.list_weights():
            opt = lopax.optimizer(name, num_steps=9)
            state = jax.eval_shape(opt.init, {"w": jnp.ones((3, 2))})
            jax.eval_shape(lambda state: lopax.extend(state, 20), state)
