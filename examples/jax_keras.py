"""Keras 3 on JAX: any Keras model, trained with a learned optimizer in a jitted loop.

    KERAS_BACKEND=jax python examples/jax_keras.py [--compare] [--steps 300]

Keras optimizers do not see the loss, so `model.fit` will not do; `stateless_call` makes
the model a pure function, and the rest is optax. Parameters are passed by their paths,
so that rules that go by names (Celo2) know what is what.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import jax
import jax.numpy as jnp
import keras
import optax
from jax_judging import example
from sklearn.datasets import load_digits

BATCH, TRAIN = 64, 1_400


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )


def train(opt: optax.GradientTransformation, steps: int) -> tuple[Any, Any]:
    """Training losses [steps], and the share of held-out digits classified wrongly."""
    opt = optax.with_extra_args_support(opt)
    digits: Any = load_digits()
    x = jnp.asarray(digits.images[..., None] / 16.0, jnp.float32)
    y = jnp.asarray(digits.target)
    model = network()
    weights = {v.path: v.value for v in model.trainable_variables}
    others = [v.value for v in model.non_trainable_variables]  # statistics, seeds
    paths = [v.path for v in model.trainable_variables]

    def loss_fn(weights: Any, others: Any, x: Any, y: Any) -> tuple[Any, Any]:
        ordered = [weights[path] for path in paths]
        scores, others = model.stateless_call(ordered, others, x, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, y)
        return losses.mean(), others

    @jax.jit
    def step(weights: Any, others: Any, state: Any, key: jax.Array) -> Any:
        batch = jax.random.randint(key, (BATCH,), 0, TRAIN)
        (loss, others), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            weights, others, x[batch], y[batch]
        )
        updates, state = opt.update(grads, state, weights, value=loss)
        return optax.apply_updates(weights, updates), others, state, loss

    state, losses = opt.init(weights), []
    for key in jax.random.split(jax.random.key(0), steps):
        weights, others, state, loss = step(weights, others, state, key)
        losses.append(loss)
    for variable, path in zip(model.trainable_variables, paths, strict=True):
        variable.assign(weights[path])
    for variable, value in zip(model.non_trainable_variables, others, strict=True):
        variable.assign(value)
    found = model.predict(x[TRAIN:], verbose=0).argmax(-1)
    return losses, (found != y[TRAIN:]).mean()


if __name__ == "__main__":
    example(str(__doc__), train, steps=300, unit="held-out error")
