"""The accumulators of one tensor that most per-element rules keep.

Three momenta, one second moment and three factored second moments (Shazeer & Stern,
2018, arXiv 1804.04235), none of them bias-corrected, with their decays either fixed or
meta-learned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lopax.rules import layers
from lopax.rules.element_net import NUM_DECAYS, Decays
from lopax.rules.form import COUNT, EACH, Keeps, Place
from lopax.rules.ops import Array, Draw, Ops

PUBLISHED_DECAYS = Decays((0.9, 0.99, 0.999), (0.999,), (0.9, 0.99, 0.999))
"""What VeLO, Adafac-MLP, STAR and Celo start from or use."""


class Factored(NamedTuple):
    """Second moments by row and by column of a tensor of rank >= 2, or of a vector."""

    row: Any  # [3, *s without the largest axis]
    col: Any  # [3, *s without the second largest]
    full: Any  # [3, *s], of vectors


class Moments(NamedTuple):
    """State of one tensor."""

    momenta: Any  # [3, *s]
    second: Any  # [*s]
    factored: Factored


class AdamMoments(NamedTuple):
    """State of one tensor under Adam's direction."""

    momentum: Any  # [*s]
    second: Any  # [*s]
    step: Any  # updates made of the tensor


ADAM_KEEPS = AdamMoments(EACH, EACH, COUNT)
KEEPS = Moments(
    Keeps(NUM_DECAYS),
    EACH,
    Factored(*(Keeps(NUM_DECAYS, line=line) for line in ("row", "col", "vector"))),
)


def adam(
    xp: Ops, state: AdamMoments, grad: Array, b1: Array | float, b2: Array | float
) -> AdamMoments:
    """After one more gradient; what counts the updates is the driver's."""
    momentum = xp.ema(state.momentum, grad, b1)
    second = xp.ema(state.second, xp.square(grad), b2)
    return state._replace(momentum=momentum, second=second)


def fixed(xp: Ops, decays: Decays) -> Decays:
    """Decays that are settings, as arrays."""
    return Decays(*(xp.constant(d) for d in decays))


def zero_offsets(draw: Draw) -> dict[str, Any]:
    """Meta-parameters of learned decays, at their starting point."""
    sizes = Decays(*(len(d) for d in PUBLISHED_DECAYS))
    return {name: draw.full((n,)) for name, n in sizes._asdict().items()}


def learned(xp: Ops, offsets: dict[str, Array]) -> Decays:
    """Decays 1 - (1 - d) exp(10 t), for offsets t around zero, in [0, 1].

    The factor of 10 makes offsets of the size of the perturbations used in
    meta-training (0.01) move the time constant by a tenth.
    """

    def decay(initial: tuple[float, ...], offsets: Array) -> Array:
        # In float32 only four digits of 1 - d survive for d near one, so another order
        # of operations would be another decay than published weights were trained with.
        start = xp.log(1.0 - xp.constant(initial)) / 10.0
        return xp.clip(1.0 - xp.exp((start + offsets) * 10.0), 0.0, 1.0)

    published = PUBLISHED_DECAYS._asdict().items()
    return Decays(**{name: decay(start, offsets[name]) for name, start in published})


def hold_unreached(xp: Ops, place: Place, x: Array, state: Moments) -> Array:
    """x [*lead, *s], and 0 for elements that never saw a gradient other than zero. A
    driver that knows of none leaves the state out."""
    if state.second is None:
        return x
    averages = state.momenta, place.layered(state.second)
    return layers.hold_unreached(xp, place, x, *averages)
