"""A tiny MLP applied to every element of a tensor, channels kept apart.

The inputs are a list of channels, each an array that broadcasts to the tensor's
shape. In `apply` nothing of shape [..., channels] is ever built: hidden units are sums
of `weight * channel`, which XLA fuses into one loop over elements, and channels that
vary along one axis only (row and column statistics) are summed while they are still
vectors. `apply_dense` is the same as matrix products, with the channels side by side:
it needs memory for [elements, channels], but its program does not grow with the number
of weights, so it serves wide layers and derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.types import Theta


def apply(
    theta: Theta, channels: Sequence[Float[Array, "..."]], scales: Sequence[Array]
) -> list[Float[Array, "..."]]:
    """Output channels, each of the tensor's shape.

    **Arguments:**

    - `channels`: input channels, broadcastable to one shape.
    - `scales`: [] a factor per input channel (its normaliser), folded into the first
      layer's weights instead of being multiplied into every element.

    Differentiated, it is `apply_dense`: the derivative of the unrolled form takes
    minutes to compile.
    """
    return _apply(theta, list(channels), list(scales))


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


@jax.custom_jvp
def _apply(theta: Theta, channels: list[Array], scales: list[Array]) -> list[Array]:
    w0 = theta["w0"]
    scaled = [[w0[c, j] * s for j in range(w0.shape[1])] for c, s in enumerate(scales)]
    hidden = _affine(channels, scaled, theta["b0"])
    layer = 1
    while f"w{layer}" in theta:
        w = theta[f"w{layer}"]
        weights = [[w[i, j] for j in range(w.shape[1])] for i in range(w.shape[0])]
        hidden = _affine([jax.nn.relu(h) for h in hidden], weights, theta[f"b{layer}"])
        layer += 1
    return hidden


@_apply.defjvp
def _apply_jvp(primals: Any, tangents: Any) -> Any:
    def dense(theta: Theta, channels: list[Array], scales: list[Array]) -> list[Array]:
        outputs = apply_dense(theta, channels, scales)
        return [outputs[..., i] for i in range(outputs.shape[-1])]

    return jax.jvp(dense, primals, tangents)


def _affine(
    inputs: Sequence[Array], weights: Sequence[Sequence[Array]], bias: Array
) -> list[Array]:
    """Sums grouped by shape, so that small (row, column) channels stay small."""
    outputs = []
    for j in range(bias.shape[0]):
        by_shape: dict[tuple[int, ...], Array] = {}
        for x, w in zip(inputs, weights, strict=True):
            term = x * w[j]
            old = by_shape.get(x.shape)
            by_shape[x.shape] = term if old is None else old + term
        ordered = sorted(by_shape.values(), key=lambda a: a.size)
        total = ordered[0] + bias[j]
        for part in ordered[1:]:
            total = total + part
        outputs.append(total)
    return outputs
