"""The MLP-mixer (Tolstikhin et al., 2021, arXiv 2105.01601) for small images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params, TaskState
from lopax.tasks.networks import Network, layer_norm, linears, norm_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixer(Network):
    """Logits [batch, outputs] of images [batch, side, side, channels]: blocks that mix
    the patches, then the channels, each by an MLP with GELU and the norm before it.

    Raises `ConfigError` for a size below one; `init` for images that patches do not
    tile.
    """

    outputs: int
    patch: int = 4
    width: int = 256
    token_inner: int = 128
    channel_inner: int = 1024
    layers: int = 6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(self, field.name, low=1)

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        height, across, channels = input_shape
        if height % self.patch or across % self.patch:
            raise ConfigError(
                f"Mixer.patch = {self.patch}: must divide both sides of the images, "
                f"which are {height}x{across}"
            )
        tokens = (height // self.patch) * (across // self.patch)
        sizes = {"patches": (self.patch**2 * channels, self.width)}
        for i in range(self.layers):
            sizes |= {
                f"block{i}.tokens_up": (tokens, self.token_inner),
                f"block{i}.tokens_down": (self.token_inner, tokens),
                f"block{i}.up": (self.width, self.channel_inner),
                f"block{i}.down": (self.channel_inner, self.width),
            }
        layers = linears(key, {**sizes, "head": (self.width, self.outputs)})
        params: dict[str, Any] = {
            "patches": layers["patches"],
            "norm": norm_params(self.width),
            "head": layers["head"],
        }
        for i in range(self.layers):
            names = ("tokens_up", "tokens_down", "up", "down")
            params[f"block{i}"] = {
                **{name: layers[f"block{i}.{name}"] for name in names},
                "norm1": norm_params(self.width),
                "norm2": norm_params(self.width),
            }
        return params, None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        p: Any = params
        x = _dense(p["patches"], self._cut(inputs))
        for i in range(self.layers):
            block = p[f"block{i}"]
            y = jnp.swapaxes(layer_norm(block["norm1"], x), 1, 2)
            y = _dense(block["tokens_down"], jax.nn.gelu(_dense(block["tokens_up"], y)))
            x = x + jnp.swapaxes(y, 1, 2)
            y = jax.nn.gelu(_dense(block["up"], layer_norm(block["norm2"], x)))
            x = x + _dense(block["down"], y)
        seen = jnp.mean(layer_norm(p["norm"], x), axis=1)
        return _dense(p["head"], seen), state

    def _cut(self, images: Array) -> Array:
        """[n, side, side, c] to [n, patches, patch^2 c]."""
        n, height, across, channels = images.shape
        size = self.patch
        cut = images.reshape(
            n, height // size, size, across // size, size, channels
        ).transpose(0, 1, 3, 2, 4, 5)
        return cut.reshape(n, -1, size * size * channels)


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["w"] + layer["b"]
