"""Random trees, ranks, dtypes, scales and accidents: nothing may become non-finite,
and training must go on afterwards."""

from __future__ import annotations

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from optax_rules import NAMES, compact_programs, make  # noqa: F401
from quick_compile import quick_compilation, quick_jit  # noqa: F401

SHAPES = [
    (),
    (1,),
    (5,),
    (3, 4),
    (4, 3),
    (1, 6),
    (2, 3, 2),
    (2, 2, 3, 2),
    (2, 1, 2, 2, 2),
]
SHAPES += [(0,), (2, 0, 3)]
STEPS = 5
BAD = (np.nan, np.inf, -np.inf)

leaves = st.tuples(st.sampled_from(SHAPES), st.sampled_from(["float32", "bfloat16"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2),
    ),
    max_leaves=3,
)
exponents = st.integers(-12, 12)
SETTINGS = hypothesis.settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def is_leaf(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], str)


def arrays(tree: Any, scale: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        shape, dtype = leaf
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32).astype(dtype)

    return jax.tree.map(one, tree, is_leaf=is_leaf)


@pytest.mark.parametrize("name", NAMES)
@SETTINGS
@hypothesis.given(
    tree=trees,
    param_scale=exponents,
    grad_scale=exponents,
    loss_scale=exponents,
    bad_step=st.integers(0, STEPS - 2),
    bad=st.sampled_from(BAD),
    in_loss=st.booleans(),
)
@hypothesis.example(
    tree={"w": ((3, 4), "float32"), "b": ((5,), "bfloat16")},
    param_scale=12,
    grad_scale=-12,
    loss_scale=12,
    bad_step=0,
    bad=np.nan,
    in_loss=False,
)
def test_finite_and_recovering(
    name, tree, param_scale, grad_scale, loss_scale, bad_step, bad, in_loss
):
    params = arrays(tree, 10.0**param_scale, 0)
    grads = arrays(tree, 10.0**grad_scale, 1)
    empty = sum(x.size for x in jax.tree.leaves(params)) == 0
    poison = jnp.zeros((STEPS,)).at[bad_step].set(bad)
    opt = make(name, STEPS, report=True)

    def body(carry: Any, given: Any) -> Any:
        params, state = carry
        poison, loss = given
        in_grads, in_value = (0.0, poison) if in_loss else (poison, 0.0)
        g = jax.tree.map(lambda g: g + jnp.asarray(in_grads, g.dtype), grads)
        value = loss + in_value
        updates, state = opt.update(g, state, params, value=value)
        moved = jax.tree.map(lambda p, u: p + u, params, updates)
        return (moved, state), updates

    losses = 10.0**loss_scale * jnp.linspace(2.0, 1.0, STEPS)

    def run(params: Any) -> Any:
        return jax.lax.scan(body, (params, opt.init(params)), (poison, losses))

    (after, state), updates = quick_jit(run)(params)
    for leaf in jax.tree.leaves((after, state, updates)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
    if in_loss or not empty:
        assert int(state.rule.skipped) == 1
    moved = [np.asarray(u, np.float32) for u in jax.tree.leaves(updates)]
    assert not any(np.any(u[bad_step]) for u in moved)
    kinds = [(p.shape, p.dtype) for p in jax.tree.leaves(params)]
    assert [(p.shape, p.dtype) for p in jax.tree.leaves(after)] == kinds
    if not empty and grad_scale > -4:
        assert any(np.any(u[-1]) for u in moved), "the rule did not move again"
