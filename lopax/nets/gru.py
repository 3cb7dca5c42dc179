"""A GRU cell in Flax's convention.

Gates are in the order r, z, n; the reset gate acts on the candidate's recurrent part
after its matrix product, and only there is a recurrent bias.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Key, Theta
from lopax.nets import initializers


def init(key: Key, inputs: int, hidden: int) -> Theta:
    """{"wx": [inputs, 3 hidden], "bx": [3 hidden], "wh": [hidden, 3 hidden],
    "bh": [hidden]}: fan-in normal input weights, orthogonal recurrent ones."""
    k_input, *k_gates = jax.random.split(key, 4)
    orthogonal = jax.nn.initializers.orthogonal()
    gates = [orthogonal(k, (hidden, hidden), jnp.float32) for k in k_gates]
    return {
        "wx": initializers.fan_in_normal(k_input, inputs, 3 * hidden),
        "bx": jnp.zeros((3 * hidden,), jnp.float32),
        "wh": jnp.concatenate(gates, axis=1),
        "bh": jnp.zeros((hidden,), jnp.float32),
    }


def apply(
    theta: Theta, x: Float[Array, "*n i"], hidden: Float[Array, "*n h"]
) -> Float[Array, "*n h"]:
    """The next state, which is also the output."""
    given = jnp.dot(x, theta["wx"], precision="highest") + theta["bx"]
    kept = jnp.dot(hidden, theta["wh"], precision="highest")
    r_x, z_x, n_x = jnp.split(given, 3, axis=-1)
    r_h, z_h, n_h = jnp.split(kept, 3, axis=-1)
    reset = jax.nn.sigmoid(r_x + r_h)
    update = jax.nn.sigmoid(z_x + z_h)
    candidate = jnp.tanh(n_x + reset * (n_h + theta["bh"]))
    return (1.0 - update) * candidate + update * hidden
