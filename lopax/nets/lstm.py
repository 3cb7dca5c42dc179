"""An LSTM cell in the convention of the published weights (Haiku's).

Gates are split in the order i, g, f, o; the forget gate's bias of +1 is part of the
formula, not of the parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Key, Theta
from lopax.nets import initializers, linear


class LSTMState(NamedTuple):
    hidden: Float[Array, "*n h"]
    cell: Float[Array, "*n h"]


def init(key: Key, inputs: int, hidden: int) -> Theta:
    """{"w": [inputs + hidden, 4 hidden], "b": [4 hidden]}; input rows come first."""
    return initializers.linear(key, inputs + hidden, 4 * hidden)


def apply(theta: Theta, x: Float[Array, "*n i"], state: LSTMState) -> LSTMState:
    """The next state; its `hidden` is the output."""
    gates = linear.apply(theta, jnp.concatenate([x, state.hidden], axis=-1))
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1.0) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def tile(initial: Theta, copies: int) -> LSTMState:
    """`copies` rows of a learned initial state {"hidden": [h], "cell": [h]}."""
    return LSTMState(
        jnp.tile(initial["hidden"], (copies, 1)), jnp.tile(initial["cell"], (copies, 1))
    )
