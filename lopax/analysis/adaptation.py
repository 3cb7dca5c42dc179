"""How a recurrent rule adapts its rate to the size of the gradients.

Under a constant gradient g* the state rests at another point. The steps there trace a
curve over g*; its effective learning rate, -du/dg at the resting point, falls along
both arms if the rule adapts as RMSProp does (Maheswaranathan et al., 2020, arXiv
2011.02159).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from numpy.typing import NDArray

from lopax.analysis.fixed_points import speed
from lopax.analysis.recurrent import RecurrentView


class Adaptation(NamedTuple):
    """Resting points under G constant gradients, float64."""

    gradients: NDArray[np.float64]  # [G]
    states: NDArray[np.float64]  # [G, n]
    updates: NDArray[np.float64]  # [G] the step made there
    rates: NDArray[np.float64]  # [G] -du/dg there
    speeds: NDArray[np.float64]  # [G] Q there: large if there is no resting point

    def rests(self, tolerance: float = 1e-6) -> NDArray[np.bool_]:
        """[G] whether the state came to rest."""
        return self.speeds < tolerance


def adaptation_curve(
    view: RecurrentView,
    gradients: ArrayLike,
    *,
    start: ArrayLike | None = None,
    steps: int = 2_000,
) -> Adaptation:
    """Runs the rule on each constant gradient [G] until it rests.

    **Arguments:**

    - `start`: the state [n] to begin with; default: the rule's initial one. Following
        the rule itself, and not a minimiser, finds the points training can reach.
    """
    h0 = jnp.asarray(view.initial if start is None else start, jnp.float32)
    grid = jnp.asarray(gradients, jnp.float32)

    @jax.jit
    def run(grid: Array) -> tuple[Array, ...]:
        def one(g: Array) -> tuple[Array, ...]:
            h = jax.lax.fori_loop(0, steps, lambda _, h: view.transition(h, g), h0)
            u, slope = jax.value_and_grad(lambda x: view.update(h, x))(g)
            return h, u, -slope, speed(view, h, g)

        return jax.vmap(one)(grid)

    found = [np.asarray(x, np.float64) for x in (grid, *run(grid))]
    return Adaptation(*found)
