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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.errors import ConfigError
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.blocks import loss_history, time_features
from lopax.blocks.loss_history import LossHistory
from lopax.nets import initializers, linear, lstm
from lopax.nets.lstm import LSTMState

NUM_INPUTS = time_features.NUM_FRACTION + loss_history.NUM_FEATURES

_OPEN, _SHUT = 4.0, -6.0  # gate biases


class SchedulerState(NamedTuple):
    history: LossHistory
    lstm: LSTMState


def init_theta(key: Key, size: int) -> Theta:
    """Meta-parameters of a scheduler with `size` LSTM units."""
    k_mix, k_skip, k_lstm, k_head = jax.random.split(key, 4)
    return {
        "initial": {
            "hidden": jnp.zeros((size,), jnp.float32),
            "cell": jnp.zeros((size,), jnp.float32),
        },
        "mix": initializers.linear(k_mix, NUM_INPUTS, size),
        "skip": initializers.linear(k_skip, NUM_INPUTS, size),
        "lstm": lstm.init(k_lstm, size, size),
        "head": initializers.linear(k_head, size, 1),
    }


def following(theta: Theta, multiplier: Callable[[Array], Array]) -> Theta:
    """The same scheduler, begun at a schedule that is known to work.

    One unit per input feature is set to carry just that feature, without memory: input
    and output gates open, forget gate shut. The head is fitted to the wanted curve on
    the time features by ridge regression, has zeros for the loss features, and hardly
    listens to the other units, which stay random.

    **Arguments:**

    - `multiplier`: from fractions of the run done [n] to multipliers [n], all > 0.

    Raises `ConfigError` if there are fewer units than input features.
    """
    count, size = NUM_INPUTS, theta["head"]["w"].shape[0]
    if size < count:
        raise ConfigError(
            f"lstm = {size}: a scheduler that starts at a schedule needs at least "
            f"{count} units"
        )
    mix, skip, cell = theta["mix"], theta["skip"], theta["lstm"]
    mix = {"w": mix["w"].at[:, :count].set(0.0), "b": mix["b"].at[:count].set(0.0)}
    skip = {
        "w": skip["w"].at[:, :count].set(jnp.eye(count, dtype=jnp.float32)),
        "b": skip["b"],
    }
    # [inputs + hidden, gate (i g f o), unit]
    w, b = cell["w"].reshape(2 * size, 4, size), cell["b"].reshape(4, size)
    w = (
        w.at[:, :, :count]
        .set(0.0)
        .at[:count, 1, :count]
        .set(jnp.eye(count, dtype=jnp.float32))
    )
    b = b.at[:, :count].set(
        jnp.asarray([[_OPEN], [0.0], [_SHUT], [_OPEN]], jnp.float32)
    )
    cell = {"w": w.reshape(cell["w"].shape), "b": b.reshape(-1)}

    fractions, times = (
        jnp.linspace(0.0, 1.0, 201, dtype=jnp.float32),
        time_features.NUM_FRACTION,
    )
    gate = jax.nn.sigmoid(_OPEN)
    inputs = jax.vmap(time_features.fraction_done)(fractions)
    hidden = gate * jnp.tanh(gate * jnp.tanh(inputs))
    basis = jnp.concatenate(
        [hidden, jnp.ones((len(fractions), 1), jnp.float32)], axis=1
    )
    target = jnp.log(multiplier(fractions)) - math.log(0.1)
    gram = basis.T @ basis + 1e-3 * jnp.eye(times + 1, dtype=jnp.float32)
    fit = jnp.linalg.solve(gram, basis.T @ target)
    # The time features come first among the inputs.
    weights = (0.1 * theta["head"]["w"]).at[:count].set(0.0)
    head = {"w": weights.at[:times, 0].set(fit[:-1]), "b": fit[-1:]}
    return {**theta, "mix": mix, "skip": skip, "lstm": cell, "head": head}


def falling(high: float, low: float) -> Callable[[Array], Array]:
    """Exponential decay from `high` to `low` over the run, for `following`."""
    return lambda fraction: high * jnp.power(low / high, fraction)


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


def beyond(state: SchedulerState, trained: int | None) -> Scalar:
    """min(1, sqrt(trained / horizon)) []: for runs longer than `trained` steps.

    Steps relative to a tensor's size make it grow as a random walk does. With this
    factor the walk of a longer run is as long as that of one of `trained` steps.
    None: 1.
    """
    if trained is None:
        return jnp.ones((), jnp.float32)
    return jnp.sqrt(jnp.minimum(1.0, trained / loss_history.horizon(state.history)))


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
