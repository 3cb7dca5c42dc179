"""The plain per-element MLP against its formulas in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopax

DECAYS = np.asarray([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
SCALES = np.asarray([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])


@pytest.mark.parametrize("hidden", [4, 32])
def test_against_numpy(hidden):
    """Both forms of the network: unrolled, and as matrix products."""
    rule = lopax.architecture("plain_mlp", hidden=hidden, step_mult=0.1, exp_mult=0.5)
    theta = rule.init_theta(jax.random.key(0))
    net = {k: np.asarray(v, np.float64) for k, v in theta["net"].items()}
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=(2,))}
    grads = [{k: rng.normal(size=v.shape) for k, v in start.items()} for _ in range(4)]
    params = jax.tree.map(jnp.float32, start)
    state, want = rule.init(theta, params), dict(start)
    momenta = {k: np.zeros((6, *v.shape)) for k, v in start.items()}
    update = jax.jit(rule.update)
    for t, grad in enumerate(grads):
        updates, state, _ = update(
            theta, jax.tree.map(jnp.float32, grad), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        for k, g in grad.items():
            d = DECAYS.reshape(-1, *[1] * g.ndim)
            momenta[k] = d * momenta[k] + (1 - d) * g
            seen = np.stack([g, want[k], *momenta[k]], axis=-1)
            axes = tuple(range(g.ndim))
            seen = seen / np.sqrt(1e-5 + np.mean(seen**2, axis=axes, keepdims=True))
            times = np.broadcast_to(np.tanh(t / SCALES - 1), (*g.shape, 11))
            x = np.concatenate([seen, times], axis=-1)
            for layer in range(3):
                x = x @ net[f"w{layer}"] + net[f"b{layer}"]
                x = np.maximum(x, 0) if layer < 2 else x
            want[k] = want[k] - 0.1 * x[..., 0] * np.exp(0.5 * x[..., 1])
            moved = np.max(np.abs(want[k] - start[k]))
            assert np.max(np.abs(params[k] - want[k])) < 2e-5 * moved + 2e-6, (t, k)
