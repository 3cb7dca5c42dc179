"""Which architectures are coordinate-wise recurrent rules, and their views.

Their own `step` treats gradients as constants, for the sake of meta-gradients; the
views are differentiable in the gradient. Where the step depends on the gradient also
directly, the view keeps the gradient in its state, last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from lopax._core.errors import NotApplicable
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Scalar, Theta
from lopax.analysis.recurrent import RecurrentView, momentum_view
from lopax.architectures.classes import (
    L2LGD2,
    L2OGRU,
    L2OLSTM,
    LearnedSGD,
    LinearOptim,
    Optim4RL,
)
from lopax.architectures.described import XP
from lopax.nets import linear
from lopax.rules import layers
from lopax.rules.layers import LSTMState
from lopax.rules.log_features import log_and_sign
from lopax.rules.optim4rl import LOG_RANGE


def recurrent_view(optimizer: LearnedOptimizer, theta: Theta) -> RecurrentView:
    """The view of a coordinate-wise recurrent rule.

    Raises `NotApplicable` for rules that look at more than an element's own gradients.
    """
    for kind, make in _VIEWS.items():
        if isinstance(optimizer, kind):
            return make(optimizer, theta)
    names = ", ".join(k.name for k in _VIEWS)
    raise NotApplicable(
        f"{optimizer.name!r} is no coordinate-wise recurrent rule (its step depends on "
        "more than an element's own gradients), so it has no state space to analyse: "
        f"fixed points, momentum modes and PCA work for {names}. For this rule use "
        "compare_directions, gradient_response and invariances; feature_importance if "
        "it has a per-element network"
    )


def is_recurrent(optimizer: LearnedOptimizer) -> bool:
    """Whether `recurrent_view` has a view of this rule."""
    return isinstance(optimizer, tuple(_VIEWS))


def _l2o_gru(rule: L2OGRU, theta: Theta) -> RecurrentView:
    told: Any = rule.rule
    return RecurrentView(
        theta["initial"],
        lambda h, g: told.transition(XP, theta, h, g),
        lambda h: told.readout(XP, theta, h),
    )


def _l2o_lstm(rule: L2OLSTM, theta: Theta) -> RecurrentView:
    told: Any = rule.rule
    zeros = jnp.zeros((rule.config.layers * rule.config.lstm,))
    start, unravel = ravel_pytree(LSTMState(zeros, zeros))

    def transition(h: Array, g: Scalar) -> Array:
        return ravel_pytree(told.transition(XP, theta, unravel(h), g))[0]

    return RecurrentView(
        start, transition, lambda h: told.readout(XP, theta, unravel(h))
    )


def _learned_sgd(rule: LearnedSGD, theta: Theta) -> RecurrentView:
    del rule
    decay = 1.0 - jnp.exp(jnp.clip(theta["one_minus_momentum"], -13.0, 0.0))
    return momentum_view(jnp.exp(theta["log_lr"]), decay)


def _clip(rule: Any, g: Scalar) -> Scalar:
    return jnp.clip(g, -rule.config.clip, rule.config.clip)


def _optim4rl(rule: Optim4RL, theta: Theta) -> RecurrentView:
    n = rule.config.units

    def transition(h: Array, g: Scalar) -> Array:
        g = _clip(rule, g)
        first = layers.gru(XP, theta["first"]["gru"], g[None], h[:n])
        second = layers.gru(XP, theta["second"]["gru"], jnp.square(g)[None], h[n:-1])
        return jnp.concatenate([first, second, jnp.sign(g)[None]])

    def readout(h: Array) -> Scalar:
        out1 = linear.apply(theta["first"]["head"], h[:n])[0]
        out2 = linear.apply(theta["second"]["head"], h[n:-1])[0]
        size = jnp.exp(out1) * jax.lax.rsqrt(jnp.exp(out2) + 1e-8)
        return -rule.config.lr * h[-1] * size

    return RecurrentView(jnp.zeros((2 * n + 1,)), transition, readout)


def _linear_optim(rule: LinearOptim, theta: Theta) -> RecurrentView:
    def transition(h: Array, g: Scalar) -> Array:
        g = _clip(rule, g)[None]
        return jnp.concatenate([layers.gru(XP, theta["gru"], g, h[:-1]), g])

    def readout(h: Array) -> Scalar:
        gain, size, offset = linear.apply(theta["head"], h[:-1])
        return -rule.config.lr * (jnp.exp(gain) * h[-1] + jnp.exp(size) * offset)

    return RecurrentView(jnp.zeros((rule.config.units + 1,)), transition, readout)


def _l2lgd2(rule: L2LGD2, theta: Theta) -> RecurrentView:
    def transition(h: Array, g: Scalar) -> Array:
        g = _clip(rule, g)
        signal = log_and_sign(XP, g, LOG_RANGE)
        return jnp.concatenate([layers.gru(XP, theta["gru"], signal, h[:-1]), g[None]])

    def readout(h: Array) -> Scalar:
        rate = jnp.exp(linear.apply(theta["head"], h[:-1])[0])
        return -rule.config.lr * rate * h[-1]

    return RecurrentView(jnp.zeros((rule.config.units + 1,)), transition, readout)


_VIEWS: dict[type[LearnedOptimizer], Callable[[Any, Theta], RecurrentView]] = {
    L2OGRU: _l2o_gru,
    L2OLSTM: _l2o_lstm,
    LearnedSGD: _learned_sgd,
    Optim4RL: _optim4rl,
    LinearOptim: _linear_optim,
    L2LGD2: _l2lgd2,
}
