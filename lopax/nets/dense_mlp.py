"""The MLP of `mlp.py` as matrix products, for layers too wide to be unrolled.

Same parameters, same inputs, same result up to rounding. It stores the channels side
by side, so it needs memory for [elements, channels]; the unrolled form does not, but
its program grows with the number of weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
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
    outputs = apply_dense(theta, channels, scales)
    return [outputs[..., i] for i in range(outputs.shape[-1])]


def apply_dense(
    theta: Theta, channels: Sequence[Float[Array, "..."]], scales: Sequence[Array]
) -> Float[Array, "... o"]:
    """Outputs with the channels behind the tensor's axes."""
    hidden = theta["b0"]
    for members in _by_shape(channels).values():
        stacked = jnp.stack([channels[c] * scales[c] for c in members], axis=-1)
        weights = theta["w0"][jnp.asarray(members)]
        hidden = hidden + jnp.dot(stacked, weights, precision="highest")
    layer = 1
    while f"w{layer}" in theta:
        hidden = jnp.dot(jax.nn.relu(hidden), theta[f"w{layer}"], precision="highest")
        hidden = hidden + theta[f"b{layer}"]
        layer += 1
    return hidden


def _by_shape(channels: Sequence[Array]) -> dict[tuple[int, ...], list[int]]:
    """Channel numbers grouped by shape, small shapes first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for c in sorted(range(len(channels)), key=lambda c: channels[c].size):
        groups.setdefault(channels[c].shape, []).append(c)
    return groups
