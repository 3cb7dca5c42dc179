"""States at which a recurrent rule rests: minima of Q(h) = |h - F(h, g)|^2 / 2.

Found by Adam from states that were really visited (Sussillo & Barak, 2013;
Maheswaranathan et al., 2020, arXiv 2011.02159).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpy.typing import NDArray

from lopax._core.types import Scalar
from lopax.analysis.recurrent import RecurrentView


class FixedPoints(NamedTuple):
    """The distinct points found, slowest (smallest Q) first."""

    states: NDArray[np.float32]  # [P, n]
    speeds: NDArray[np.float64]  # [P] Q at them
    gradient: float  # the constant input they belong to


def speed(view: RecurrentView, state: Float[Array, "n"], gradient: Scalar) -> Scalar:
    """Q [] at a state."""
    return 0.5 * jnp.sum(jnp.square(state - view.transition(state, gradient)))


def find_fixed_points(
    view: RecurrentView,
    starts: ArrayLike,
    gradient: float = 0.0,
    *,
    steps: int = 2_000,
    learning_rate: float = 0.01,
    tolerance: float = 1e-8,
    apart: float = 1e-2,
) -> FixedPoints:
    """Minimises Q from every start [S, n] and keeps what came below `tolerance`.

    **Arguments:**

    - `learning_rate`: Adam's, falling to zero along a cosine.
    - `apart`: points closer than this times the spread of the starts are one point.

    An empty result means that no start led to a resting point.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    g = jnp.asarray(gradient, jnp.float32)

    def from_one(start: Array) -> tuple[Array, Array]:
        def step(carry: Any, _: None) -> Any:
            h, state = carry
            updates, state = optimizer.update(
                jax.grad(lambda h: speed(view, h, g))(h), state
            )
            return (optax.apply_updates(h, updates), state), None

        carry = (start, optimizer.init(start))
        (h, _), _ = jax.lax.scan(step, carry, None, length=steps)
        return h, speed(view, h, g)

    starts = jnp.asarray(starts, jnp.float32)
    points, speeds = jax.jit(jax.vmap(from_one))(starts)
    points, speeds = np.asarray(points), np.asarray(speeds, np.float64)
    spread = float(np.asarray(starts).std(axis=0).max()) if len(starts) > 1 else 0.0
    kept: list[int] = []
    for i in np.argsort(speeds):
        if not speeds[i] < tolerance:
            break
        gaps = np.linalg.norm(points[kept] - points[i], axis=1)
        if not kept or gaps.min() > apart * max(spread, 1e-6) * points.shape[1] ** 0.5:
            kept.append(int(i))
    return FixedPoints(points[kept], speeds[kept], float(gradient))
