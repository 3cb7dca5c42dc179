"""Derivatives through unrolled steps are numbers, also where they go through zeros."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import (
    NAMES,
    SETTINGS,
    compact_programs,  # noqa: F401
    params_tree,
    rule_of,
    theta_of,
)
from quick_compile import quick_jit

import lopax
from lopax._core import roots

STEPS = 3


def cases() -> tuple[list[str], Any]:
    """Names, and stacked (parameters, gradient of the loss at zero, curvature of it).

    The loss is <slopes, params> + curvature |params|^2 / 2.
    """
    usual = params_tree()
    zero, ones = (jax.tree.map(f, usual) for f in (jnp.zeros_like, jnp.ones_like))
    part = jax.tree.map(lambda x: x.at[0].set(0.0), usual)
    starts = {"usual": usual, "zero": zero, "part": part, "ones": ones}
    losses = {
        "steady": (usual, 0.0),
        "none": (zero, 0.0),
        "square": (zero, 1.0),
        "part": (part, 0.0),
        "huge": (jax.tree.map(lambda x: 1e4 * x, usual), 0.0),
    }
    found = {
        f"{start} parameters, {loss} gradients": (starts[start], *losses[loss])
        for start in starts
        for loss in losses
    }
    return list(found), jax.tree.map(lambda *xs: jnp.stack(xs), *found.values())


# As users get them, by a kernel where there is one, whose derivative is the plain
# form's; that form itself with one rule.
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in NAMES] + [("celo", {"backend": "plain"})],
)
def test_of_parameters_meta_parameters_and_gradients(
    name: str, settings: dict[str, Any]
) -> None:
    rule, theta = rule_of(name), theta_of(name)
    if settings:
        rule = lopax.architecture(name, **{**SETTINGS[name], **settings})

    def end(params: Any, theta: Any, slopes: Any, curvature: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            pairs = zip(*map(jax.tree.leaves, (slopes, params)), strict=True)
            terms = [jnp.sum(a * p + 0.5 * curvature * p * p) for a, p in pairs]
            return sum(terms, jnp.zeros(()))

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params)
            moves, state, _ = rule.update(theta, grads, state, params, value=loss)
            params = optax.apply_updates(params, moves)
            waves = [jnp.sum(jnp.sin(p + 0.3)) for p in jax.tree.leaves(params)]
            return (params, state), sum(waves, jnp.zeros(()))

        start = params, rule.init(theta, params, 10)
        return jnp.sum(jax.lax.scan(step, start, None, length=STEPS)[1])

    labels, given = cases()
    found = quick_jit(
        jax.vmap(
            lambda p, a, c: jax.grad(end, argnums=(0, 1, 2))(p, theta, a, c),
        )
    )(*given)
    for what, tree in zip(("parameters", "theta", "gradients"), found, strict=True):
        for leaf in jax.tree.leaves(tree):
            bad = ~np.isfinite(np.asarray(leaf)).reshape(len(labels), -1).all(axis=1)
            wrong = [labels[i] for i in np.flatnonzero(bad)]
            assert not wrong, (what, wrong)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(roots.sqrt, jnp.sqrt), (roots.rsqrt, jax.lax.rsqrt)]
)
def test_roots_are_the_usual_ones_where_these_have_a_derivative(
    ours: Any, theirs: Any
) -> None:
    x = jnp.asarray([1e-20, 1e-9, 0.3, 1.0, 7.0, 1e30], jnp.float32)
    for twice in (lambda f: f, lambda f: jax.vmap(jax.grad(f))):
        np.testing.assert_array_equal(twice(ours)(x), twice(theirs)(x))
    np.testing.assert_array_equal(
        jax.jvp(ours, (x,), (x,))[1], jax.jvp(theirs, (x,), (x,))[1]
    )
    for least in (0.0, 1e-30):
        assert np.isfinite(jax.grad(ours)(least)) and jax.grad(ours)(least) >= 0.0
