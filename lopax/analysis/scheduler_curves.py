"""What a learned scheduler answers to time and to the loss.

Celo's scheduler is one LSTM that sees how much of the run is done and the history of
the loss. Run alone on made-up loss curves it shows how much of its schedule is a
function of time and how much follows the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax._core.errors import NotApplicable
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.run import Run
from lopax._core.types import Scalar, Theta
from lopax.architectures.classes import Celo, CeloAdam
from lopax.architectures.described import XP
from lopax.rules import scheduler


def has_scheduler(optimizer: LearnedOptimizer) -> bool:
    """Whether the rule's step is multiplied by Celo's scheduler."""
    if isinstance(optimizer, Celo):
        return optimizer.config.phase == 2
    return isinstance(optimizer, CeloAdam)


def multipliers(
    optimizer: LearnedOptimizer, theta: Theta, losses: ArrayLike
) -> NDArray[np.float64]:
    """The step multiplier [T] of every step of a run of T with these losses [T].

    Raises `NotApplicable` if the rule has no such scheduler.
    """
    if not has_scheduler(optimizer):
        raise NotApplicable(
            f"{optimizer.name!r} has no scheduler in use: its curve exists for celo "
            "(phase 2) and celo_adam. What other rules' steps do over a run is in "
            "compare_directions (sizes and scales)"
        )
    given = jnp.asarray(losses, jnp.float32)
    return np.asarray(_follow(theta["scheduler"], given), np.float64)


@jax.jit
def _follow(theta: Theta, given: Any) -> Any:
    count = given.shape[0]

    def step(state: Any, now: Any) -> tuple[Any, Scalar]:
        t, loss = now
        run = Run(loss, t.astype(jnp.float32) / count, t, jnp.asarray(count))
        return scheduler.advance(XP, theta, state, run)

    start = scheduler.init(XP, theta, jnp.asarray(count))
    return jax.lax.scan(step, start, (jnp.arange(count), given))[1]


def typical_losses(num_steps: int) -> dict[str, NDArray[np.float64]]:
    """Made-up loss curves [T] by name, all starting at 2.3."""
    t = np.arange(num_steps) / num_steps
    falling = 2.3 * (1.0 + 200.0 * t) ** -0.5
    noise = np.random.default_rng(0).lognormal(-0.045, 0.3, num_steps)
    early = np.maximum(falling, falling[num_steps // 5])
    late = np.where(t < 0.6, falling, falling[int(0.6 * num_steps)] * (t / 0.6) ** 3)
    return {
        "falling": falling,
        "falling, noisy": falling * noise,
        "flat": np.full(num_steps, 2.3),
        "stuck after a fifth": early,
        "rising in the end": late,
    }


def loss_step_response(
    optimizer: LearnedOptimizer,
    theta: Theta,
    factors: Sequence[float],
    *,
    num_steps: int = 2_000,
    at: float = 0.5,
    after: float = 0.05,
) -> NDArray[np.float64]:
    """[F] how the multiplier answers if a falling loss is suddenly `factor` times what
    it was: its value `after` (a share of the run) later, relative to no change."""
    falling = typical_losses(num_steps)["falling"]
    begin, read = int(at * num_steps), int((at + after) * num_steps)

    def value(factor: float) -> float:
        losses = falling.copy()
        losses[begin:] *= factor
        return float(multipliers(optimizer, theta, losses)[read])

    base = value(1.0)
    return np.asarray([value(f) / base for f in factors])
