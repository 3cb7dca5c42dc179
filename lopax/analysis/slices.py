"""Update functions: the step as a function of the gradient, at a fixed state.

The slope at zero is the effective learning rate; where the curve flattens, large
gradients are clipped (Maheswaranathan et al., 2020, arXiv 2011.02159).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from numpy.typing import NDArray

from lopax.analysis.recurrent import RecurrentView


class UpdateFunction(NamedTuple):
    """Slices at S states over G gradients, both in float64."""

    gradients: NDArray[np.float64]  # [G]
    updates: NDArray[np.float64]  # [S, G]
    rates: NDArray[np.float64]  # [S] effective learning rate, -du/dg at g = 0


def update_function(
    view: RecurrentView, states: ArrayLike, gradients: ArrayLike
) -> UpdateFunction:
    """The step for every state [S, n] and every gradient [G]."""
    states, gradients = jnp.asarray(states), jnp.asarray(gradients, jnp.float32)

    @jax.jit
    def all_of(states: Array, gradients: Array) -> tuple[Array, Array]:
        def one(h: Array) -> tuple[Array, Array]:
            updates = jax.vmap(lambda g: view.update(h, g))(gradients)
            return updates, -jax.grad(lambda g: view.update(h, g))(jnp.zeros(()))

        return jax.vmap(one)(states)

    updates, rates = all_of(states, gradients)
    return UpdateFunction(
        *(np.asarray(x, np.float64) for x in (gradients, updates, rates))
    )


def saturation(
    view: RecurrentView, state: ArrayLike, near: float = 1.5, far: float = 3.0
) -> float:
    """|u(far)| / |u(near)| in a state [n], each averaged over both signs: far / near
    for a linear rule without drift, 1 for one that clips before `near`."""
    points = jnp.asarray([near, -near, far, -far])
    u = np.abs(update_function(view, jnp.asarray(state)[None], points).updates[0])
    return float((u[2] + u[3]) / (u[0] + u[1]))


def knee(curve: UpdateFunction) -> float:
    """The smallest |g| of the grid beyond which, on both sides of zero, the mean
    curve's slope stays below half its slope at zero; infinite if there is none."""
    g, slope = curve.gradients, np.gradient(curve.updates.mean(0), curve.gradients)
    middle = abs(float(np.interp(0.0, g, slope)))
    steep = np.abs(g)[np.abs(slope) >= 0.5 * middle]
    beyond = np.abs(g)[np.abs(g) > steep.max()] if steep.size else np.abs(g)
    return float(beyond.min()) if beyond.size else float("inf")


def share_beyond(grads: NDArray[np.floating], bound: float) -> float:
    """Share of gradients whose size is above `bound`."""
    return float(np.mean(np.abs(grads) > bound))
