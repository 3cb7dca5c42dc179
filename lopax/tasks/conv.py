"""Small convolutional networks, plain, with layer norm or with batch norm."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params, TaskState
from lopax.tasks.networks import (
    ACTIVATIONS,
    Network,
    check_sizes,
    layer_norm,
    linears,
    norm_params,
)

NORMS = ("none", "layer", "batch")
_KERNEL = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNet(Network):
    """3x3 convolutions, each followed by activation and norm, then the mean over
    positions and a dense layer. Inputs [batch, height, width, channels].

    The order (norm after the activation) is that of the published evaluation tasks.
    With batch norm the task state holds running means and variances.

    Raises `ConfigError` for unknown names, sizes below one, or `strides` of another
    length than `channels`.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    outputs: int
    activation: str = "relu"
    norm: str = "none"
    decay: float = 0.9
    """Of the running statistics of batch norm."""
    always_training: bool = False
    """Normalise by the batch's own statistics in evaluation too, as published."""

    def __post_init__(self) -> None:
        check_choice(self, "activation", ACTIVATIONS)
        check_choice(self, "norm", NORMS)
        check_range(self, "decay", low=0.0, below=1.0)
        check_sizes(self, "channels")
        check_sizes(self, "strides")
        if len(self.strides) != len(self.channels):
            raise ConfigError(
                f"ConvNet.strides = {self.strides}: must have one entry for each of "
                f"channels = {self.channels}"
            )

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        inputs = (input_shape[-1], *self.channels[:-1])
        sizes = {
            f"conv{i}": (_KERNEL * _KERNEL * fan_in, width)
            for i, (fan_in, width) in enumerate(zip(inputs, self.channels, strict=True))
        }
        params = linears(key, {**sizes, "head": (self.channels[-1], self.outputs)})
        state: dict[str, Any] = {}
        for name, (_, width) in sizes.items():
            layer = params[name]
            layer["w"] = layer["w"].reshape(_KERNEL, _KERNEL, -1, width)
            if self.norm != "none":
                layer |= norm_params(width)
            if self.norm == "batch":
                state[name] = {
                    "mean": jnp.zeros((width,)),
                    "variance": jnp.ones((width,)),
                }
        return params, state or None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        x = inputs
        after = {}
        for i, stride in enumerate(self.strides):
            name = f"conv{i}"
            layer = params[name]
            x = ACTIVATIONS[self.activation](
                convolve(x, layer["w"], stride) + layer["b"]
            )
            if self.norm == "layer":
                x = layer_norm(layer, x)
            elif self.norm == "batch":
                x, after[name] = self._batch_norm(layer, state[name], x, training)
        x = jnp.mean(x, axis=(1, 2))
        return x @ params["head"]["w"] + params["head"]["b"], after or None

    def _batch_norm(
        self, layer: Any, running: Any, x: Array, training: bool
    ) -> tuple[Array, Any]:
        """Normalises over batch and positions (Ioffe & Szegedy, 2015, arXiv
        1502.03167)."""
        if training or self.always_training:
            mean = jnp.mean(x, axis=(0, 1, 2))
            variance = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
        else:
            mean, variance = running["mean"], running["variance"]
        if training:
            fresh = {"mean": mean, "variance": variance}
            # The carried statistics are no path for gradients.
            running = jax.tree.map(
                lambda old, new: (
                    self.decay * old + (1.0 - self.decay) * jax.lax.stop_gradient(new)
                ),
                running,
                fresh,
            )
        normal = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        return normal * layer["scale"] + layer["offset"], running


def convolve(x: Array, w: Array, stride: int) -> Array:
    """[n, h, w, c] with [3, 3, c, o], zero padding, one output per `stride` pixels.

    XLA's CPU convolution is twenty to forty times slower inside a loop than outside
    it, and slower still under vmap. There the nine shifted images and one matrix
    product are used instead; the numbers agree to rounding.
    """
    return jax.lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: _by_matrix_product(x, w, stride),
        default=lambda x, w: jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
    )


def _by_matrix_product(x: Array, w: Array, stride: int) -> Array:
    size, _, channels, outputs = w.shape
    sides = x.shape[1:3]
    counts = [-(-side // stride) for side in sides]
    # "SAME": the padding that is needed, the odd pixel at the end.
    needed = [
        max((n - 1) * stride + size - side, 0)
        for n, side in zip(counts, sides, strict=True)
    ]
    padding = [(0, 0), *((p // 2, p - p // 2) for p in needed), (0, 0)]
    padded = jnp.pad(x, padding)
    shifted = [
        padded[
            :,
            i : i + (counts[0] - 1) * stride + 1 : stride,
            j : j + (counts[1] - 1) * stride + 1 : stride,
        ]
        for i in range(size)
        for j in range(size)
    ]
    columns = jnp.concatenate(shifted, axis=-1)
    return columns @ w.reshape(size * size * channels, outputs)
