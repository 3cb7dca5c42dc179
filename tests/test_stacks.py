"""Stacked layers and kernels of several axes are the tensors they stand for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import NAMES, rule_of, theta_of
from quick_compile import quick_jit

import lopax
from lopax._core import routing, stacks
from lopax._core.errors import ConfigError
from lopax.optax.chain import from_rule

LAYERS, STEPS = 3, 4
SHAPES = {"kernel": (6, 5), "bias": (5,), "query": (6, 2, 3), "qkv": (6, 12)}
APART = {
    "kernel": [(6, 5)],
    "bias": [(5,)],
    "query": [(6, 6)],
    "qkv": [(6, 4), (6, 4), (6, 4)],
}
ROUTES = (
    lopax.Route(name="^layers/", stack_axes=(0,)),
    lopax.Route(name="query", output_axes=(-2, -1)),
    lopax.Route(name="qkv", split=(-1, 3)),
)


def draw(seed: int) -> dict[str, list[Any]]:
    """For each name the tensors of all layers."""
    rng = np.random.default_rng(seed)
    return {
        name: [
            jnp.asarray((0.3 + 0.2 * i) * rng.standard_normal(shape), jnp.float32)
            for i in range(LAYERS)
        ]
        for name, shape in SHAPES.items()
    }


def stacked(tensors: dict[str, list[Any]]) -> Any:
    return {"layers": {name: jnp.stack(xs) for name, xs in tensors.items()}}


def separate(tensors: dict[str, list[Any]]) -> Any:
    """Each tensor as the matrices it stands for, in one list per name, so that their
    order is that in which they are found in the stack."""
    found = {}
    for name, xs in tensors.items():
        pieces = [p for x in xs for p in jnp.split(x, len(APART[name]), axis=-1)]
        found[name] = [p.reshape(APART[name][0]) for p in pieces]
    return {"layers": found}


def trained(opt: Any, params: Any, grads: list[Any]) -> tuple[Any, Any]:
    @quick_jit
    def step(grad: Any, state: Any, now: Any) -> Any:
        updates, state = opt.update(grad, state, now, value=jnp.float32(1.0))
        return optax.apply_updates(now, updates), state

    state = opt.init(params)
    for grad in grads:
        params, state = step(grad, state, params)
    return params, state


@pytest.mark.parametrize("name", [n for n in NAMES if n != "l3rs"])
def test_a_stack_is_trained_as_its_tensors(name: str) -> None:
    rule, theta = rule_of(name), theta_of(name)
    draws = [draw(i) for i in range(STEPS + 1)]

    def result(routes: Any, shape_as: Any) -> Any:
        opt = from_rule(rule, theta, num_steps=STEPS, routes=routes)
        return trained(opt, shape_as(draws[0]), [shape_as(d) for d in draws[1:]])

    whole, state = result(ROUTES, stacked)
    parts, _ = result((), separate)
    for tensor in SHAPES:
        layers = [whole["layers"][tensor][i] for i in range(LAYERS)]
        found = separate({tensor: layers})["layers"][tensor]
        for a, b in zip(found, parts["layers"][tensor], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=tensor)
    # The state keeps the axis of the stack, so that it can be split as the tensor is.
    sizes = {x.shape[0] for x in jax.tree.leaves(state.rule.tensors) if x.ndim > 2}
    assert sizes <= {LAYERS, 3 * LAYERS}


def test_apart_and_together_are_inverse() -> None:
    x = jnp.arange(2 * 4 * 6 * 5, dtype=jnp.float32).reshape(2, 4, 6, 5)
    for route in (
        lopax.Route(stack_axes=(0,)),
        lopax.Route(stack_axes=(1, 3)),
        lopax.Route(output_axes=(0, 2)),
        lopax.Route(stack_axes=(3,), split=(2, 3), output_axes=(1,)),
        lopax.Route(),
    ):
        view = routing.seen("x", x.shape, (route,), out_first=False)
        parts = stacks.apart(x, view)
        assert all(p.shape == view.shape for p in parts)
        np.testing.assert_array_equal(stacks.together(parts, view, x.shape), x)
    view = routing.seen("x", x.shape, (lopax.Route(stack_axes=(1,)),), out_first=False)
    np.testing.assert_array_equal(stacks.apart(x, view)[2], x[:, 2])


def test_roles_and_axes_that_do_not_exist_are_refused() -> None:
    params = {"w": jnp.ones((3, 4))}
    with pytest.raises(ConfigError, match="no roles"):
        lopax.optimizer("celo", num_steps=9, routes=[lopax.Route(role="adam")])
    with pytest.raises(ConfigError, match="'orthogonal', 'learned', 'adam'"):
        lopax.optimizer("celo2", num_steps=9, routes=[lopax.Route(role="muon")])
    with pytest.raises(ConfigError, match="stack_axes"):
        route = lopax.Route(stack_axes=(2,))
        lopax.optimizer("celo", num_steps=9, routes=[route]).init(params)
    with pytest.raises(ConfigError, match=r"lopax\.Route"):
        lopax.optimizer("celo", num_steps=9, routes=["w"])  # type: ignore[list-item]


def celo2_states(routes: Any, params: Any) -> dict[str, str]:
    rule: Any = lopax.architecture("celo2").routed(routes)
    state = rule.init(rule.init_theta(jax.random.key(0)), params)
    return {k: type(v).__name__ for k, v in state.tensors.items()}


def test_a_users_role_comes_first() -> None:
    route = lopax.Route(role="adam", name="w")
    found = celo2_states([route], {"w": jnp.ones((3, 4)), "v": jnp.ones((3, 4))})
    assert found == {"w": "AdamMoments", "v": "Moments"}


def test_axes_of_size_one_make_no_matrix() -> None:
    found = celo2_states([], {"row": jnp.ones((1, 8)), "column": jnp.ones((8, 1, 1))})
    assert set(found.values()) == {"AdamMoments"}


def test_roles_can_be_seen() -> None:
    params = {
        "wte": {"weight": jnp.ones((32, 8))},
        "layers": {"up": jnp.ones((3, 8, 16)), "bias": jnp.ones((3, 16))},
        "table": [jnp.ones((9000, 64))],
        "lm_head": {"kernel": jnp.ones((8, 5000))},
    }
    route = lopax.Route(name="^layers/", stack_axes=(0,))
    assert lopax.roles("celo2", params, routes=[route]) == {
        "wte/weight": "adam",
        "layers/up": "orthogonal",
        "layers/bias": "adam",
        "table/0": "adam",
        "lm_head/kernel": "adam",
    }
    assert lopax.roles("celo", params) == {}
