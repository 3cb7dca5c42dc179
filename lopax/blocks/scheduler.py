"""Celo's learned scheduler: one LSTM a step that sets one global step multiplier.

The papers and the published code speak of a scheduler per tensor. Its inputs (loss
history and fraction of training done) and its initial state are the same for every
tensor, so all copies stay equal for ever; computing it once is exactly the same thing
and does not grow with the number of tensors. For the same reason the published max
over tensors in the mixing layer is an identity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopax._core.types import Count, Key, Scalar, Theta
from lopax.blocks import loss_history, time_features
from lopax.blocks.loss_history import LossHistory
from lopax.nets import initializers, linear, lstm
from lopax.nets.lstm import LSTMState

NUM_INPUTS = time_features.NUM_FRACTION + loss_history.NUM_FEATURES


class SchedulerState(NamedTuple):
    history: LossHistory
    lstm: LSTMState


def init_theta(key: Key, size: int) -> Theta:
    """Meta-parameters of a scheduler with `size` LSTM units."""
    k_mix, k_skip, k_lstm, k_head = jax.random.split(key, 4)
    return {
        "initial": {"hidden": jnp.zeros((size,)), "cell": jnp.zeros((size,))},
        "mix": initializers.linear(k_mix, NUM_INPUTS, size),
        "skip": initializers.linear(k_skip, NUM_INPUTS, size),
        "lstm": lstm.init(k_lstm, size, size),
        "head": initializers.linear(k_head, size, 1),
    }


def neutral(theta: Theta) -> Theta:
    """The same scheduler with a head that multiplies by about one whatever it sees."""
    head = {
        "w": 0.1 * theta["head"]["w"],
        "b": jnp.full((1,), math.log(10.0), jnp.float32),
    }
    return {**theta, "head": head}


def init(theta: Theta, num_steps: Count) -> SchedulerState:
    """State before the first step of a run of `num_steps`."""
    initial = theta["initial"]
    # Copies: a caller that donates the state must not give theta's own arrays away.
    start = LSTMState(jnp.array(initial["hidden"]), jnp.array(initial["cell"]))
    return SchedulerState(loss_history.init(num_steps), start)


def advance(
    theta: Theta, state: SchedulerState, loss: Scalar, fraction: Scalar
) -> tuple[SchedulerState, Scalar]:
    """One step: next state and the multiplier 0.1 exp(w h + b) [].

    **Arguments:**

    - `loss`: [] the training loss of this step.
    - `fraction`: [] iteration / horizon, counted before this step.
    """
    history = loss_history.update(state.history, loss)
    inputs = jnp.concatenate(
        [time_features.fraction_done(fraction), loss_history.features(history)]
    )
    mixed = jax.nn.relu(linear.apply(theta["mix"], inputs))
    mixed += linear.apply(theta["skip"], inputs)
    out = lstm.apply(theta["lstm"], mixed, state.lstm)
    multiplier = 0.1 * jnp.exp(linear.apply(theta["head"], out.hidden)[0])
    return SchedulerState(history, out), multiplier


def from_published(arrays: dict, prefix_rnn: str = "rnn_params") -> dict:
    """Published scheduler arrays (with or without a leading axis of one) under our
    path names. The published `linear` layer and control head are dead and dropped."""
    initial = {k: arrays[f"lstm_init_state/{k}"] for k in ("hidden", "cell")}
    layers = {"mix": "linear_1", "skip": "linear_2", "lstm": "rnn/linear"}
    found = {f"initial/{k}": v.reshape(-1) for k, v in initial.items()}
    for ours, theirs in {**layers, "head": "step_size"}.items():
        for leaf in ("w", "b"):
            found[f"{ours}/{leaf}"] = arrays[f"{prefix_rnn}/{theirs}/{leaf}"]
    return found
