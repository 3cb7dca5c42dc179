"""A per-element network that adds to a tensor's hand-made direction.

Celo2's (Moudgil et al., 2026, arXiv 2602.19142): its accumulators, its 30 channels, two
hidden layers, one output. Its last layer is zero at first, so that it adds nothing; a
trained Celo2's first layers fit here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lopax.rules import element_plain, layers, moments, orthogonal_step
from lopax.rules.celo2 import DECAYS, EPS
from lopax.rules.element_net import ElementNet, Epsilons, Numbers
from lopax.rules.form import Place, Steps
from lopax.rules.moments import Factored, Moments
from lopax.rules.ops import Array, Arrays, Draw, Ops


class Kept(NamedTuple):
    """Its accumulators (`Moments`), under names of their own."""

    element_momenta: Any  # [3, *s]
    element_second: Any  # [*s]
    factored: Factored


KEEPS = Kept(*moments.KEEPS)


def net(hidden: int) -> ElementNet:
    """With `hidden` units a layer."""
    epsilons = Epsilons(second=1e-8, channel=EPS)
    return ElementNet(hidden, outputs=1, epsilons=epsilons, hold_unreached=False)


def init_theta(draw: Draw, key: Any, hidden: int) -> dict[str, Any]:
    """The network's arrays, the last layer's zero."""
    of = net(hidden)
    theta = layers.mlp_init(draw, key, (of.num_channels, hidden, hidden, 1))
    return {**theta, "w2": draw.full((hidden, 1)), "b2": draw.full((1,))}


def found(
    xp: Ops,
    place: Place,
    network: Arrays,
    grad: Array,
    kept: Kept,
    param: Array,
) -> Steps:
    """(what the network says of each element [*lead, *s], what is kept next)."""
    of = net(network["w1"].shape[-1])
    numbers = Numbers(network, moments.fixed(xp, DECAYS), xp.constant(-1.0))
    state = Moments(*kept)
    given = numbers, grad, state, param
    more, state = yield from element_plain.step(xp, place, of, *given)
    return more, Kept(*state)


def added(xp: Ops, place: Place, direction: Array, more: Array) -> Steps:
    """[*lead, *s] the direction at a root mean square of one, plus `more`."""
    plain, unit = yield from orthogonal_step.unit_norm(xp, place, direction)
    weight = place.column(unit * math.sqrt(place.size))
    return xp.mix([weight, xp.constant(1.0)], [plain, more])
