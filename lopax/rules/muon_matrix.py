"""What Learned Muon does with a matrix's direction, and the parts that keep something.

An element network may add to the direction, which is then orthogonalised, and outputs
may be brought nearer to steps of one length. Both are off unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lopax.rules import element_direction, orthogonal_step, output_norms
from lopax.rules.form import StepContext, Steps
from lopax.rules.ops import Array, Ops

if TYPE_CHECKING:
    from lopax.rules.learned_muon import LearnedMuonConfig


class Parts(NamedTuple):
    """What a matrix keeps for them; None for what is off."""

    elements: Any  # the accumulators of the element network
    outputs: Any  # [out] mean squares of the outputs' steps


NOTHING = Parts(None, None)


def keeps(settings: LearnedMuonConfig) -> Parts:
    """What is kept with these settings."""
    return Parts(
        element_direction.KEEPS if settings.elements else None,
        output_norms.KEEPS if settings.outputs else None,
    )


def step(
    xp: Ops,
    theta: Any,
    settings: LearnedMuonConfig,
    at: StepContext,
    direction: Callable[[], Array],
    grad: Array,
    parts: Parts,
    param: Array,
    steps: Array,
) -> Steps:
    """(what to add to the matrix [*lead, *s], what is kept next).

    **Arguments:**

    - `direction`: makes the direction [*lead, *s]; not called in a step in which no
        matrix moves.
    - `steps`: [*lead] the updates of the matrix, with this one.
    """
    c, place = settings, at.place
    more, every = None, c.orthogonalize_every
    if c.elements:
        given = theta["elements"], grad, parts.elements, param
        more, kept = yield from element_direction.found(xp, place, *given)
        parts = parts._replace(elements=kept)

    def moved() -> Steps:
        way, blends = direction(), at.told["blends"] if c.blend else None
        if more is not None:
            way = yield from element_direction.added(xp, place, way, more)
        given = way, -at.told["sizes"] * float(every), c.orthogonalizer, blends
        return (yield from orthogonal_step.step(xp, place, *given))

    delta = yield from xp.every(every, at.updates, moved, grad.shape)
    if c.outputs:
        given = delta, parts.outputs, steps, theta["outputs"]
        delta, kept = yield from output_norms.scaled(xp, place, *given)
        parts = parts._replace(outputs=kept)
    return delta, parts
