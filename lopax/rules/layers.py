"""What rules are made of: layers of small networks, and what goes with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lopax.rules.form import Place
from lopax.rules.ops import Array, Arrays, Draw, Ops

WIDE_CLIP = 1e9
"""Bound of gradients for rules whose publications clip nothing. Beyond it the square of
a squared gradient would leave float32's range, and the published rules produce NaN."""


def linear(draw: Draw, key: Any, fan_in: int, fan_out: int) -> dict[str, Any]:
    """{"w": [fan_in, fan_out], "b": [fan_out]}, as Haiku starts them."""
    std = 1.0 / math.sqrt(fan_in)
    return {
        "w": draw.truncated_normal(key, (fan_in, fan_out), std),
        "b": draw.full((fan_out,)),
    }


def affine(xp: Ops, layer: Arrays, x: Array) -> Array:
    """x w + b [*n, o] with w [i, o]."""
    return xp.matmul(x, layer["w"]) + layer["b"]


class LSTMState(NamedTuple):
    hidden: Any  # [*n, h]
    cell: Any  # [*n, h]


def lstm_init(draw: Draw, key: Any, inputs: int, hidden: int) -> dict[str, Any]:
    """{"w": [inputs + hidden, 4 hidden], "b": [4 hidden]}; input rows come first."""
    return linear(draw, key, inputs + hidden, 4 * hidden)


def lstm(xp: Ops, layer: Arrays, x: Array, state: LSTMState) -> LSTMState:
    """The next state of an LSTM; its `hidden` is the output.

    The convention of the published weights (Haiku's): gates in the order i, g, f, o;
    the forget gate's bias of +1 is part of the formula, not of the parameters.
    """
    gates = affine(xp, layer, xp.concat([x, state.hidden], axis=-1))
    i, g, f, o = split(gates, 4)
    cell = xp.sigmoid(f + 1.0) * state.cell + xp.sigmoid(i) * xp.tanh(g)
    return LSTMState(xp.sigmoid(o) * xp.tanh(cell), cell)


def tiled(xp: Ops, initial: Arrays, rows: int) -> LSTMState:
    """`rows` copies of a learned initial state {"hidden": [h], "cell": [h]}."""
    hidden, cell = initial["hidden"], initial["cell"]
    return LSTMState(
        xp.broadcast_to(hidden, (rows, *hidden.shape)),
        xp.broadcast_to(cell, (rows, *cell.shape)),
    )


class Units(NamedTuple):
    """Hidden units behind the tensor's axes."""

    units: Any  # [*s, h]


def gru_init(draw: Draw, key: Any, inputs: int, hidden: int) -> dict[str, Any]:
    """{"wx": [inputs, 3 hidden], "bx": [3 hidden], "wh": [hidden, 3 hidden],
    "bh": [hidden]}: fan-in normal input weights, orthogonal recurrent ones."""
    k_input, *k_gates = draw.split(key, 4)
    std = 1.0 / math.sqrt(inputs)
    return {
        "wx": draw.truncated_normal(k_input, (inputs, 3 * hidden), std),
        "bx": draw.full((3 * hidden,)),
        "wh": draw.orthogonal(k_gates, hidden),
        "bh": draw.full((hidden,)),
    }


def gru(xp: Ops, layer: Arrays, x: Array, hidden: Array) -> Array:
    """The next state [*n, h] of a GRU for x [*n, i]; it is also the output.

    Flax's convention: gates in the order r, z, n; the reset gate acts on the
    candidate's recurrent part after its matrix product, and only there is a recurrent
    bias.
    """
    r_x, z_x, n_x = split(xp.matmul(x, layer["wx"]) + layer["bx"], 3)
    r_h, z_h, n_h = split(xp.matmul(hidden, layer["wh"]), 3)
    reset, update = xp.sigmoid(r_x + r_h), xp.sigmoid(z_x + z_h)
    candidate = xp.tanh(n_x + reset * (n_h + layer["bh"]))
    return (1.0 - update) * candidate + update * hidden


def mlp_init(draw: Draw, key: Any, sizes: Sequence[int]) -> dict[str, Any]:
    """{"w0": [i, h], "b0": [h], "w1", ...}, weights by fan-in and zero biases."""
    found = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        key, layer_key = draw.split(key, 2)
        layer = linear(draw, layer_key, fan_in, fan_out)
        found[f"w{i}"], found[f"b{i}"] = layer["w"], layer["b"]
    return found


def split(x: Array, parts: int) -> list[Array]:
    """Equal parts of the last axis."""
    n = x.shape[-1] // parts
    return [x[..., i * n : (i + 1) * n] for i in range(parts)]


def unit_scale(xp: Ops, mean_square: Array, eps: float = 1e-5) -> Array:
    """The factor that brings a channel of this mean square to one of one; 0 for what
    has left float32's range."""
    return xp.bounded_rsqrt(mean_square + eps)


def hold_unreached(xp: Ops, place: Place, x: Array, *averages: Array) -> Array:
    """x [*lead, *s], and 0 for elements that never saw a gradient other than zero:
    those where all of these averages [*lead, K, *s] are zero. They stay where they are.
    """
    return held(xp, x, reached(xp, place, *averages))


def reached(xp: Ops, place: Place, *averages: Array) -> Array | None:
    """The first half of it, for rules that do much before they have x: next to what
    made the averages they need not be read again."""
    return xp.reached(-1 - place.rank, averages)


def held(xp: Ops, x: Array, reached: Array | None) -> Array:
    """The second half."""
    return x if reached is None else xp.where(reached, x, 0.0)


def waiting(grad: Array, unmoved: Iterable[Array]) -> Array:
    """[*n] bool: which elements of a recurrent rule, which has no average of the
    gradient, wait for their first: as long as it was always exactly zero they keep
    their first state and do not move.

    **Arguments:**

    - `unmoved`: [*n] bool each, whether a state is still the first.
    """
    found = grad == 0.0
    for x in unmoved:
        found = found & x
    return found
