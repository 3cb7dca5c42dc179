"""Train an MLP on scikit-learn's digits with the bundled Celo, and with Adam.

python examples/jax_digits.py
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopax

STEPS, BATCH = 1_000, 64

digits: Any = load_digits()
images = jnp.asarray(digits.data / 16.0, jnp.float32)
labels = jnp.asarray(digits.target)
train, test = slice(0, 1_400), slice(1_400, None)


def init(key: jax.Array) -> dict[str, jax.Array]:
    k1, k2 = jax.random.split(key)
    return {
        "w1": jax.random.normal(k1, (64, 128)) / 8.0,
        "b1": jnp.zeros(128),
        "w2": jax.random.normal(k2, (128, 10)) / 128**0.5,
        "b2": jnp.zeros(10),
    }


def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def loss_fn(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
    return losses.mean()


def fit(opt: optax.GradientTransformation) -> tuple[float, float]:
    """Final training loss and test accuracy."""
    opt = optax.with_extra_args_support(opt)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        index = jax.random.randint(key, (BATCH,), 0, 1_400)
        loss, grads = jax.value_and_grad(loss_fn)(params, images[index], labels[index])
        updates, state = opt.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def run(key):
        start = init(key)
        keys = jax.random.split(key, STEPS)
        (params, _), losses = jax.lax.scan(step, (start, opt.init(start)), keys)
        hit = jnp.argmax(logits(params, images[test]), -1) == labels[test]
        return losses[-50:].mean(), hit.mean()

    loss, accuracy = run(jax.random.key(0))
    return float(loss), float(accuracy)


if __name__ == "__main__":
    for name, opt in (
        ("celo, untuned", lopax.optimizer("celo", num_steps=STEPS)),
        ("adam(1e-3)", optax.adam(1e-3)),
        ("adam(1e-2)", optax.adam(1e-2)),
    ):
        loss, accuracy = fit(opt)
        print(f"{name:<14} training loss {loss:.4f}   test accuracy {accuracy:.3f}")
