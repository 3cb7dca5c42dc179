"""Coordinate-wise recurrent rules as one small dynamical system.

A rule that looks at nothing but an element's own gradients is a map from state and
gradient to the next state, h' = F(h, g), and a readout of the new state, u = w(h'),
which is the step. All tools for recurrent rules take only this view of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lopax._core.task import TaskFamily
from lopax._core.types import Key, Scalar


class RecurrentView(NamedTuple):
    """One coordinate of a recurrent rule."""

    initial: Float[Array, "n"]
    transition: Callable[[Array, Scalar], Array]
    """(state [n], gradient []) -> next state [n]."""
    readout: Callable[[Array], Scalar]
    """New state [n] -> what is added to the parameter []."""

    def update(self, state: Float[Array, "n"], grad: Scalar) -> Scalar:
        """The step [] on gradient `grad` in state `state`."""
        return self.readout(self.transition(state, grad))


def momentum_view(alpha: Any, beta: Any) -> RecurrentView:
    """Heavy-ball momentum, x <- x - alpha m with m <- beta m + g, as a recurrent rule;
    gradient descent with beta = 0. Both [] may be traced."""
    return RecurrentView(
        jnp.zeros((1,)), lambda m, g: beta * m + g, lambda m: -alpha * m[0]
    )


class Visited(NamedTuple):
    """What coordinates went through in training runs."""

    states: Float[Array, "N T d n"]  # after each step
    grads: Float[Array, "N T d"]
    updates: Float[Array, "N T d"]
    losses: Float[Array, "N T"]  # before each step, as the family normalises them


def visit(
    view: RecurrentView,
    family: TaskFamily,
    key: Key,
    *,
    problems: int = 64,
    steps: int = 200,
    coordinates: int = 32,
) -> Visited:
    """Trains `problems` tasks of `family` with the rule and records what it saw.

    **Arguments:**

    - `coordinates`: elements recorded of each task, spread evenly over its parameters.
    """

    def one(key: Key) -> Visited:
        k_sample, k_init, k_run = jax.random.split(key, 3)
        task = family.task(family.sample(k_sample))
        params, task_state = task.init(k_init)
        flat, unravel = ravel_pytree(params)
        d = min(coordinates, flat.size)
        shown = jnp.linspace(0, flat.size - 1, d).round().astype(jnp.int32)
        states = jnp.broadcast_to(view.initial, (flat.size, view.initial.size))

        def step(carry: Any, key: Key) -> Any:
            flat, states, task_state = carry
            loss, grads, task_state = task.value_and_grad(
                unravel(flat), task_state, key
            )
            g = ravel_pytree(grads)[0]
            states = jax.vmap(view.transition)(states, g)
            u = jax.vmap(view.readout)(states)
            seen = Visited(states[shown], g[shown], u[shown], task.normalize(loss))
            return (flat + u, states, task_state), seen

        keys = jax.random.split(k_run, steps)
        return jax.lax.scan(step, (flat, states, task_state), keys)[1]

    return jax.jit(jax.vmap(one))(jax.random.split(key, problems))
