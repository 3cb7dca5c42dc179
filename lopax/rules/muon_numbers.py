"""The few numbers of Learned Muon's theta that are the same for all tensors.

All are zero at the start, where the rule is the hand-made optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lopax.rules import momentum_features, time_features
from lopax.rules.momentum_features import ROLES, TYPICAL_STEPS
from lopax.rules.ops import Array, Draw, Ops

KNOTS = 9


def zeros(draw: Draw, weights: int, signal: bool, blend: bool) -> dict[str, Any]:
    """Theta without its network, for directions that are a sum of so many arrays."""
    found = {
        "size": draw.full((len(ROLES),)),
        "horizon": draw.full((len(ROLES),)),
        "shape": draw.full((2,)),
        "schedule": draw.full((KNOTS,)),
        "momenta": {"start": draw.full((weights,)), "slope": draw.full((weights,))},
    }
    if signal:
        found["signal"] = draw.full((2,))
    if blend:
        found["blend"] = draw.full(())
    return found


def log_sizes(
    xp: Ops, theta: Any, summaries: Array, roles: Array, done: Any, horizon: Any
) -> Array:
    """[N] what is added to the log sizes of the steps.

    **Arguments:**

    - `summaries`: [N, F], see `momentum_features`; `roles`: [N, 3] of them, one-hot.
    - `done`, `horizon`: [] share of the run that is over, and its length.
    """
    length = xp.log(horizon / TYPICAL_STEPS)
    per_role = theta["size"] + theta["horizon"] * length
    found = xp.sum(roles * per_role, axis=-1)
    shapes = 2.0 * summaries[:, momentum_features.SHAPE]
    shaped = xp.sum(shapes * theta["shape"], axis=-1)
    schedule = time_features.at_knots(xp, theta["schedule"], done)
    return found + roles[:, 0] * shaped + schedule


def weights(xp: Ops, theta: Any, start: Sequence[float], done: Any, rows: int) -> Array:
    """[rows, K] weights of the gradient and of each momentum in the direction."""
    learned = theta["momenta"]
    found = learned["start"] + learned["slope"] * done + xp.constant(start)
    return xp.broadcast_to(found, (rows, len(start)))


def toward_slowest(xp: Ops, out: Array, number: int) -> Array:
    """[N, K] what a network's output [N, 1] adds to the weights of K arrays: from the
    fast momenta to the slowest."""
    if number < 3:
        return 0.0 * out
    return out * xp.constant((0.0, -0.3, *(0.0 for _ in range(number - 3)), 0.3))
