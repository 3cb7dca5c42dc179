"""Elements that never saw a gradient other than zero do not move, under any rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import quick_jit
from rule_table import jax_backends

import lopax
from lopax.architectures import ARCHITECTURES, architecture
from lopax.optax.chain import from_rule

STEPS = 20
SHAPES = {"backbone": (12, 8), "bias": (9,), "embedding": (10, 6), "w": (8, 8)}


def masks() -> dict[str, Any]:
    """Where gradients are not always zero: nowhere in a frozen backbone and its bias,
    not in two rows of an embedding, and at every second element of a matrix."""
    every_second = (jnp.arange(64).reshape(8, 8) % 2).astype(jnp.float32)
    return {
        "backbone": jnp.zeros((12, 8)),
        "bias": jnp.zeros((9,)),
        "embedding": jnp.ones((10, 6)).at[3:5].set(0.0),
        "w": every_second,
    }


def params() -> dict[str, Any]:
    key = jax.random.key(0)
    return {
        n: jax.random.normal(jax.random.fold_in(key, i), s)
        for i, (n, s) in enumerate(SHAPES.items())
    }


def shaken_theta(rule: Any) -> Any:
    """Meta-parameters none of which is zero: a fresh theta may do nothing anyway."""
    return jax.tree.map(
        lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
        rule.init_theta(jax.random.key(1)),
    )


def moved(opt: Any, steps: int = STEPS) -> tuple[dict[str, Any], Any]:
    """What `steps` masked gradients changed, and the last state."""
    mask, start = masks(), params()
    key = jax.random.key(9)

    def gradients(i: Any) -> dict[str, Any]:
        return {
            n: mask[n] * jax.random.normal(jax.random.fold_in(key, 7 * i + j), x.shape)
            for j, (n, x) in enumerate(start.items())
        }

    @quick_jit
    def step(i: Any, now: Any, state: Any) -> Any:
        updates, state = opt.update(gradients(i), state, now, value=1.0 / (1 + i))
        return optax.apply_updates(now, updates), state

    now, state = start, opt.init(start)
    for i in range(steps):
        now, state = step(jnp.asarray(i), now, state)
    return {n: np.asarray(now[n] - start[n]) for n in start}, state


@pytest.mark.parametrize("name", ARCHITECTURES.names("*"))
def test_what_never_saw_a_gradient_stays(name: str) -> None:
    by_backend = []
    for settings in jax_backends(name):
        rule = architecture(name, **settings)
        found, _ = moved(from_rule(rule, shaken_theta(rule), num_steps=STEPS))
        by_backend.append(found)
        for tensor, mask in masks().items():
            live = np.asarray(mask) > 0
            assert not np.any(found[tensor][~live]), (tensor, settings)
            assert np.all(found[tensor][live] != 0.0), (tensor, settings)
    for tensor in SHAPES:
        for other in by_backend[1:]:
            scale = np.abs(by_backend[0][tensor]).max() + 1e-12
            np.testing.assert_allclose(
                other[tensor] / scale, by_backend[0][tensor] / scale, atol=2e-4
            )


@pytest.mark.parametrize("name", ["celo", "celo2", "star"])
def test_elements_wait_for_their_first_gradient(name: str) -> None:
    """After it they are trained as if nothing had been."""
    rule = architecture(name)
    opt: Any = from_rule(rule, shaken_theta(rule), num_steps=10)
    now = {"w": jnp.ones((4, 4))}
    state = opt.init(now)
    for i in range(3):
        row = 1.0 * (i == 2)
        grads = {"w": jnp.ones((4, 4)).at[1].set(row)}
        updates, state = opt.update(grads, state, now, value=1.0)
        still = np.asarray(updates["w"][1]) == 0.0
        assert still.all() if i < 2 else not still.any()


@pytest.mark.parametrize("name", ["celo", "celo_adam", "star"])
def test_weight_decay_goes_on_as_in_adamw(name: str) -> None:
    """Decoupled decay shrinks frozen parameters too, by the same share each."""
    rule = architecture(name)
    opt = from_rule(rule, shaken_theta(rule), num_steps=STEPS, weight_decay=0.1)
    found, _ = moved(opt, steps=3)
    share = found["backbone"] / np.asarray(params()["backbone"])
    assert np.all(share < 0.0)
    np.testing.assert_allclose(share, share[0, 0], rtol=2e-2)


def test_a_frozen_backbone_in_a_loss() -> None:
    """Bundled weights; the backbone is cut off by `stop_gradient`."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (32, 6))
    start: Any = {"backbone": jnp.ones((6, 5)), "head": 0.1 * jnp.ones((5, 3))}

    def loss(p: Any) -> Any:
        hidden = jnp.tanh(x @ jax.lax.stop_gradient(p["backbone"]))
        return jnp.mean(jnp.square(hidden @ p["head"] - x[:, :3]))

    apply: Any = optax.apply_updates  # its result is a tree that cannot be indexed
    for name in ("celo", "celo2"):
        opt: Any = lopax.optimizer(name, num_steps=STEPS)
        now, state = start, opt.init(start)
        for _ in range(3):
            value, grads = jax.value_and_grad(loss)(now)
            updates, state = opt.update(grads, state, now, value=value)
            now = apply(now, updates)
        assert np.array_equal(now["backbone"], start["backbone"]), name
        assert not np.any(now["head"] == start["head"]), name
