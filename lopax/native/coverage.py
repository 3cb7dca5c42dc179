"""What the C core can do: which element networks, and which tensors."""

from __future__ import annotations

import math

from lopax.rules.element_net import ElementNet
from lopax.rules.form import Place

MOST_HIDDEN, MOST_WINDOW = 64, 128


def not_covered(net: ElementNet) -> str | None:
    """What of a network the core cannot do; None if it covers it."""
    if net.hidden > MOST_HIDDEN:
        return f"the kernel is for hidden <= {MOST_HIDDEN}, not {net.hidden}"
    if net.outputs > 2:
        return f"the kernel is for one or two outputs, not {net.outputs}"
    return None


def tensor_not_covered(net: ElementNet, place: Place) -> str | None:
    """Why the core cannot step a tensor; None if it can."""
    shape, axes = place.shape, place.factored
    if not net.per_matrix or axes is None or len(shape) < 3:
        return None
    if sorted(place.matrix) != sorted(axes):
        return f"the two largest axes of {list(shape)} are not those of its matrices"
    window = math.prod(shape[max(axes) + 1 :])
    if window > MOST_WINDOW:
        return f"{list(shape)} has {window} matrices side by side, over {MOST_WINDOW}"
    return None
