"""Residual networks and convolutional autoencoders for images of 32x32 pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.types import Key, Params, TaskState
from lopax.tasks.conv import convolve
from lopax.tasks.networks import Network, check_sizes, linears, norm_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet(Network):
    """Stages of residual blocks of two 3x3 convolutions, group norm and ReLU before
    each (He et al., 2016, arXiv 1603.05027; Wu & He, 2018, arXiv 1803.08494); every
    stage but the first halves the sides. Then the mean over positions and a dense
    layer. Inputs [batch, height, width, channels].

    Raises `ConfigError` for a size below one.
    """

    outputs: int
    channels: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    """Of each stage."""
    groups: int = 8

    def __post_init__(self) -> None:
        check_sizes(self, "channels")
        for name in ("outputs", "blocks", "groups"):
            check_range(self, name, low=1)

    def _blocks(self) -> list[tuple[str, int, int, int]]:
        """(name, channels in, channels out, stride)."""
        found, width = [], self.channels[0]
        for stage, after in enumerate(self.channels):
            for i in range(self.blocks):
                stride = 2 if stage and not i else 1
                found.append((f"stage{stage}_block{i}", width, after, stride))
                width = after
        return found

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        sizes = {"stem": (9 * input_shape[-1], self.channels[0])}
        for name, before, after, _ in self._blocks():
            sizes[f"{name}.conv0"] = (9 * before, after)
            sizes[f"{name}.conv1"] = (9 * after, after)
            if before != after:
                sizes[f"{name}.shortcut"] = (before, after)
        sizes["head"] = (self.channels[-1], self.outputs)
        layers = linears(key, sizes)
        params: dict[str, Any] = {
            "stem": _kernel(layers["stem"]),
            "norm": norm_params(self.channels[-1]),
            "head": layers["head"],
        }
        for name, before, after, _ in self._blocks():
            block: dict[str, Any] = {
                "norm0": norm_params(before),
                "conv0": _kernel(layers[f"{name}.conv0"]),
                "norm1": norm_params(after),
                "conv1": _kernel(layers[f"{name}.conv1"]),
            }
            if before != after:
                block["shortcut"] = {"w": layers[f"{name}.shortcut"]["w"]}
            params[name] = block
        return params, None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        p: Any = params
        x = _conv(p["stem"], inputs, 1)
        for name, _, _, stride in self._blocks():
            block = p[name]
            y = jax.nn.relu(group_norm(block["norm0"], x, self.groups))
            if "shortcut" in block:
                x = y[:, ::stride, ::stride] @ block["shortcut"]["w"]
            y = _conv(block["conv0"], y, stride)
            y = jax.nn.relu(group_norm(block["norm1"], y, self.groups))
            x = x + _conv(block["conv1"], y, 1)
        x = jax.nn.relu(group_norm(p["norm"], x, self.groups))
        x = jnp.mean(x, axis=(1, 2))
        return x @ p["head"]["w"] + p["head"]["b"], state


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvAutoencoder(Network):
    """3x3 convolutions that halve the sides down to a code of few channels, and their
    mirror image, which doubles them by repetition; GELU, a sigmoid at the end.

    Raises `ConfigError` for a size below one.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    code: int = 8
    """Channels of the code."""

    def __post_init__(self) -> None:
        check_sizes(self, "channels")
        check_range(self, "code", low=1)

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        down = (input_shape[-1], *self.channels, self.code)
        up = down[::-1]
        sizes = {
            f"{side}{i}": (9 * a, b)
            for side, widths in (("down", down), ("up", up))
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        }
        return {n: _kernel(layer) for n, layer in linears(key, sizes).items()}, None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        x, count = inputs, len(self.channels)
        for i in range(count):
            x = jax.nn.gelu(_conv(params[f"down{i}"], x, 2))
        x = _conv(params[f"down{count}"], x, 1)
        for i in range(count + 1):
            x = _conv(params[f"up{i}"], x, 1)
            if i < count:
                x = jnp.repeat(jnp.repeat(jax.nn.gelu(x), 2, axis=1), 2, axis=2)
        return jax.nn.sigmoid(x), state


def group_norm(params: Any, x: Array, groups: int) -> Array:
    """Normalises [n, h, w, c] over positions and the channels of a group; the number of
    groups is the largest that divides c and `groups`."""
    n, height, width, channels = x.shape
    groups = math.gcd(groups, channels)
    y = x.reshape(n, height * width, groups, channels // groups)
    mean = jnp.mean(y, axis=(1, 3), keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), axis=(1, 3), keepdims=True)
    y = ((y - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
    return y * params["scale"] + params["offset"]


def _kernel(layer: dict[str, Array]) -> dict[str, Array]:
    return {**layer, "w": layer["w"].reshape(3, 3, -1, layer["w"].shape[-1])}


def _conv(layer: Any, x: Array, stride: int) -> Array:
    return convolve(x, layer["w"], stride) + layer["b"]
