"""What the C core can do: which element networks, and which tensors."""

from __future__ import annotations

from lopax.rules.element_net import ElementNet

MOST_HIDDEN, MOST_WINDOW = 64, 128


def not_covered(net: ElementNet) -> str | None:
    """What of a network the core cannot do; None if it covers it."""
    if net.hidden > MOST_HIDDEN:
        return f"the kernel is for hidden <= {MOST_HIDDEN}, not {net.hidden}"
    if net.outputs > 2:
        return f"the kernel is for one or two outputs, not {net.outputs}"
    return None


def tensor_not_covered(
    net: ElementNet,
    shape: tuple[int, ...],
    axes: tuple[int, int] | None,
    matrix: tuple[int, ...],
) -> str | None:
    """Why the core cannot step a tensor of this shape; None if it can.

    **Arguments:**

    - `axes`: the second largest and the largest, by which moments are factored; None
        for vectors.
    - `matrix`: those of inputs and outputs, over which channels are normalised if they
        are so per matrix.
    """
    if not net.per_matrix or axes is None or len(shape) < 3:
        return None
    if sorted(a % len(shape) for a in matrix) != sorted(axes):
        return f"the two largest axes of {list(shape)} are not those of its matrices"
    window = 1
    for size in shape[max(axes) + 1 :]:
        window *= size
    if window > MOST_WINDOW:
        return f"{list(shape)} has {window} matrices side by side, over {MOST_WINDOW}"
    return None
