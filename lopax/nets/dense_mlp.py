"""The MLP of `mlp.py` in whichever of its two forms suits its width."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Float

from lopax._core.types import Theta
from lopax.nets import mlp

UNROLLED_UP_TO = 8
"""Widest hidden layer that `apply` hands to the unrolled form."""


def apply(
    theta: Theta,
    channels: Sequence[Float[Array, "..."]],
    scales: Sequence[Array],
    unrolled: bool | None = None,
) -> list[Float[Array, "..."]]:
    """Output channels, each of the tensor's shape, by whichever form suits the width.

    Arguments as in `mlp.apply`; channels of shape [] are the same for all elements.
    `unrolled` chooses the form instead.
    """
    if unrolled is None:
        unrolled = theta["b0"].shape[0] <= UNROLLED_UP_TO
    if unrolled:
        return mlp.apply(theta, channels, scales)
    outputs = mlp.apply_dense(theta, channels, scales)
    return [outputs[..., i] for i in range(outputs.shape[-1])]
