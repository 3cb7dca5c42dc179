"""The schedule hidden in a recurrent rule: what it does while no gradient comes.

Left alone (g = 0), the state moves from its initial value to a resting point. The
slope of the update function along this path is a learning-rate schedule that no input
drives, only the count of steps (Maheswaranathan et al., 2020, arXiv 2011.02159).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from lopax.analysis.recurrent import RecurrentView


class ImplicitSchedule(NamedTuple):
    """Along the autonomous path, [T]; entry t belongs to update t."""

    rates: NDArray[np.float64]  # -du/dg at g = 0
    drift: NDArray[np.float64]  # the step made without any gradient
    states: NDArray[np.float64]  # [T, n] before update t


def implicit_schedule(view: RecurrentView, steps: int = 200) -> ImplicitSchedule:
    """The effective learning rate of the first `steps` updates without gradients."""
    zero = jnp.zeros(())

    def step(h: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        u, slope = jax.value_and_grad(lambda g: view.update(h, g))(zero)
        return view.transition(h, zero), (-slope, u, h)

    run = jax.jit(lambda h: jax.lax.scan(step, h, None, length=steps)[1])
    rates, drift, states = run(jnp.asarray(view.initial))
    return ImplicitSchedule(
        *(np.asarray(x, np.float64) for x in (rates, drift, states))
    )
