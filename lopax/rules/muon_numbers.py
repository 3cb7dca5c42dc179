"""The few numbers of Learned Muon's theta that are the same for all tensors.

All are zero at the start, where the rule is the hand-made optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lopax._core.run import Run
from lopax.rules import loss_history, momentum_features, time_features
from lopax.rules.momentum_features import ROLES, TYPICAL_STEPS
from lopax.rules.ops import Array, Draw, Ops
from lopax.rules.place import Place

KNOTS = 9


class Shared(NamedTuple):
    """What the tensors of a network share."""

    usual: Any  # [] log ratio of the network's size to the usual, see `unit_ratios`
    alone: Any  # [] 1 if the network has no matrix, else 0
    signal: Any  # [3] what is kept of how gradients agree with momenta, or None
    loss: Any  # a `LossHistory`, or None


class Carried(NamedTuple):
    """What is carried of each tensor from step to step."""

    unit: Any  # [N] ratio of the tensor's size to the usual
    traces: Any  # [N, 6] running averages of its features; None without a network


PARTS: dict[str, tuple[int, ...]] = {
    "kernels": (),
    "signal": (2,),
    "history": (loss_history.NUM_FEATURES,),
    "outputs": (),
    "blend": (),
}
"""Parts of theta that are there if the setting of their name is true: their shapes."""


def zeros(draw: Draw, weights: int, settings: Any) -> dict[str, Any]:
    """Theta without its networks, for directions that are a sum of so many arrays."""
    found = {
        "size": draw.full((len(ROLES),)),
        "horizon": draw.full((len(ROLES),)),
        "shape": draw.full((2,)),
        "schedule": draw.full((KNOTS,)),
        "momenta": {"start": draw.full((weights,)), "slope": draw.full((weights,))},
    }
    parts = {k: draw.full(n) for k, n in PARTS.items() if getattr(settings, k)}
    return found | parts


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
    if "kernels" in theta:
        found = found + theta["kernels"] * summaries[:, momentum_features.KERNEL]
    shapes = 2.0 * summaries[:, momentum_features.SHAPE]
    shaped = xp.sum(shapes * theta["shape"], axis=-1)
    schedule = time_features.at_knots(xp, theta["schedule"], done)
    return found + roles[:, 0] * shaped + schedule


def listened(
    xp: Ops,
    theta: Any,
    shared: Shared,
    summaries: Array,
    decay: float,
    run: Run,
    horizon: Array,
) -> tuple[Array, Shared]:
    """([] what is added to all log sizes for what the gradients [N, F] and the losses
    have said so far, what is kept of it)."""
    found = xp.constant(0.0)
    if shared.signal is not None:
        given = summaries, decay, run, horizon
        signal, seen = momentum_features.signal(xp, shared.signal, *given)
        found = found + xp.sum(theta["signal"] * seen)
        shared = shared._replace(signal=signal)
    if shared.loss is not None:
        losses = loss_history.update(xp, shared.loss, run.loss)
        found = found + xp.sum(theta["history"] * loss_history.features(xp, losses))
        shared = shared._replace(loss=losses)
    return found, shared


def weights(xp: Ops, theta: Any, start: Sequence[float], done: Any, rows: int) -> Array:
    """[rows, K] weights of the gradient and of each momentum in the direction."""
    learned = theta["momenta"]
    found = learned["start"] + learned["slope"] * done + xp.constant(start)
    return xp.broadcast_to(found, (rows, len(start)))


def mixed(
    xp: Ops,
    place: Place,
    weights: Array,
    correction: Array,
    grad: Array,
    momenta: Array,
) -> Array:
    """[*lead, *s] a tensor's direction.

    **Arguments:**

    - `weights`: [*lead, 1 + K] of the gradient [*lead, *s] and of each momentum;
    - `correction`: [*lead, K] what the momenta [*lead, K, *s] are divided by, so that
        they are means.
    """
    unbiased = weights[..., 1:] / correction
    number = range(unbiased.shape[-1])
    columns = [weights[..., 0], *(unbiased[..., k] for k in number)]
    arrays = [grad, *(place.layer(momenta, k) for k in number)]
    return xp.mix([place.column(w) for w in columns], arrays)


def toward_slowest(xp: Ops, out: Array, number: int) -> Array:
    """[N, K] what a network's output [N, 1] adds to the weights of K arrays: from the
    fast momenta to the slowest."""
    if number < 3:
        return 0.0 * out
    return out * xp.constant((0.0, -0.3, *(0.0 for _ in range(number - 3)), 0.3))
