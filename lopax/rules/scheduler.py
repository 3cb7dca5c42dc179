"""Celo's learned scheduler: one LSTM a step that sets one global step multiplier.

The papers and the published code speak of a scheduler per tensor. Its inputs (loss
history and fraction of training done) and its initial state are the same for every
tensor, so all copies stay equal for ever; computing it once is exactly the same thing
and does not grow with the number of tensors. For the same reason the published max
over tensors in the mixing layer is an identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lopax._core.errors import ConfigError
from lopax._core.run import Run
from lopax.rules import layers, loss_history
from lopax.rules.layers import LSTMState
from lopax.rules.loss_history import LossHistory
from lopax.rules.ops import Array, Draw, Ops
from lopax.rules.time_features import FRACTION_CENTRES, fraction_done

NUM_FRACTION = len(FRACTION_CENTRES)
NUM_INPUTS = NUM_FRACTION + loss_history.NUM_FEATURES

_OPEN, _SHUT = 4.0, -6.0  # gate biases


class SchedulerState(NamedTuple):
    loss: LossHistory
    lstm: LSTMState


def init_theta(draw: Draw, key: Any, size: int) -> dict[str, Any]:
    """Meta-parameters of a scheduler with `size` LSTM units."""
    k_mix, k_skip, k_lstm, k_head = draw.split(key, 4)
    return {
        "initial": {"hidden": draw.full((size,)), "cell": draw.full((size,))},
        "mix": layers.linear(draw, k_mix, NUM_INPUTS, size),
        "skip": layers.linear(draw, k_skip, NUM_INPUTS, size),
        "lstm": layers.lstm_init(draw, k_lstm, size, size),
        "head": layers.linear(draw, k_head, size, 1),
    }


def fit_to_schedule(
    draw: Draw, theta: dict[str, Any], size: int, multiplier: Callable[[Any], Any]
) -> dict[str, Any]:
    """The same scheduler, begun at a schedule that is known to work.

    One unit per input feature is set to carry just that feature, without memory: input
    and output gates open, forget gate shut. The head is fitted to the wanted curve on
    the time features by ridge regression, has zeros for the loss features, and hardly
    listens to the other units, which stay random.

    **Arguments:**

    - `size`: number of LSTM units.
    - `multiplier`: from fractions of the run done [n] to multipliers [n], all > 0.

    Raises `ConfigError` if there are fewer units than input features.
    """
    if size < NUM_INPUTS:
        raise ConfigError(
            f"lstm = {size}: a scheduler that starts at a schedule needs at least "
            f"{NUM_INPUTS} units"
        )
    carriers = np.arange(size) < NUM_INPUTS
    others, one_each = ~carriers, np.eye(NUM_INPUTS, size)

    def edit(layer: dict[str, Any], **changes: tuple[Any, Any]) -> dict[str, Any]:
        return layer | {k: draw.edit(layer[k], *v) for k, v in changes.items()}

    # [inputs + hidden, gate (i g f o), unit]
    cell = np.zeros((2 * size, 4, size))
    cell[:NUM_INPUTS, 1] = one_each
    gates = np.array([[_OPEN], [0.0], [_SHUT], [_OPEN]]) * carriers
    head = np.zeros((size, 1))
    fit = _fit(multiplier)
    head[:NUM_FRACTION, 0] = fit[:-1]
    every_gate = np.tile(others, 4)
    return {
        **theta,
        "mix": edit(theta["mix"], w=(others, 0.0), b=(others, 0.0)),
        "skip": edit(theta["skip"], w=(others, one_each)),
        "lstm": edit(
            theta["lstm"],
            w=(every_gate, cell.reshape(2 * size, 4 * size)),
            b=(every_gate, gates.reshape(-1)),
        ),
        "head": edit(theta["head"], w=(0.1 * others[:, None], head), b=(0.0, fit[-1:])),
    }


def _fit(multiplier: Callable[[Any], Any]) -> Any:
    """[10] what the head is to make of the time features' carriers and of one."""
    fractions = np.linspace(0.0, 1.0, 201)
    inputs = np.tanh(10.0 * (fractions[:, None] - np.array(FRACTION_CENTRES)))
    gate = 1.0 / (1.0 + math.exp(-_OPEN))
    hidden = gate * np.tanh(gate * np.tanh(inputs))
    basis = np.concatenate([hidden, np.ones((len(fractions), 1))], axis=1)
    target = np.log(multiplier(fractions)) - math.log(0.1)
    gram = basis.T @ basis + 1e-3 * np.eye(basis.shape[1])
    return np.linalg.solve(gram, basis.T @ target)


def falling(high: float, low: float) -> Callable[[Any], Any]:
    """Exponential decay from `high` to `low` over the run, for `fit_to_schedule`."""
    return lambda fraction: high * np.power(low / high, fraction)


def init(xp: Ops, theta: Any, num_steps: Array) -> SchedulerState:
    """State before the first step of a run of `num_steps` [] int32."""
    initial = theta["initial"]
    start = LSTMState(initial["hidden"], initial["cell"])
    return SchedulerState(loss_history.init(xp, num_steps), start)


def inputs(xp: Ops, history: LossHistory, fraction: Array) -> Array:
    """[18] what a scheduler sees of the run: time features, then loss features."""
    return xp.concat([fraction_done(xp, fraction), loss_history.features(xp, history)])


def advance(
    xp: Ops, theta: Any, state: SchedulerState, run: Run
) -> tuple[SchedulerState, Array]:
    """One step: next state and the multiplier 0.1 exp(w h + b) []."""
    history = loss_history.update(xp, state.loss, run.loss)
    seen = inputs(xp, history, run.fraction)
    mixed = xp.relu(layers.affine(xp, theta["mix"], seen))
    mixed = mixed + layers.affine(xp, theta["skip"], seen)
    out = layers.lstm(xp, theta["lstm"], mixed, state.lstm)
    multiplier = 0.1 * xp.exp(layers.affine(xp, theta["head"], out.hidden)[0])
    return SchedulerState(history, out), multiplier


def horizon_scale(xp: Ops, num_steps: Array, trained: int | None) -> Any:
    """min(1, sqrt(trained / num_steps)) []: for runs longer than `trained` steps.

    Steps relative to a tensor's size make it grow as a random walk does. With this
    factor the walk of a longer run is as long as that of one of `trained` steps.
    None: 1.
    """
    if trained is None:
        return 1.0
    return xp.sqrt(xp.minimum(trained / (num_steps * xp.constant(1.0)), 1.0))
