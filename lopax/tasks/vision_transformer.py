"""A vision transformer for small images.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021, arXiv 2010.11929): square
patches, a class token, learned positions, norm before each block, a head on the class
token. Shapes, initial values and epsilon are those of the authors' published JAX
definition (google-research/vision_transformer), without dropout: query, key and value
kernels are [width, heads, width/heads], the head starts at zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params, TaskState
from lopax.tasks.networks import Network, norm_params

_EPSILON = 1e-6
_xavier = jax.nn.initializers.xavier_uniform()
_small = jax.nn.initializers.normal(1e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformer(Network):
    """Logits [batch, outputs] of images [batch, side, side, channels].

    Raises `ConfigError` for a size below one or a width that `heads` does not divide;
    `init` raises it for images that patches do not tile.
    """

    outputs: int
    patch: int = 16
    width: int = 384
    inner: int = 1536
    """Width of the hidden layer of each MLP."""
    heads: int = 6
    layers: int = 6

    def __post_init__(self) -> None:
        for name in ("outputs", "patch", "width", "inner", "heads", "layers"):
            check_range(self, name, low=1)
        if self.width % self.heads:
            raise ConfigError(
                f"VisionTransformer.width = {self.width}: must be a multiple of heads "
                f"= {self.heads}"
            )

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        height, across, channels = input_shape
        if height % self.patch or across % self.patch:
            raise ConfigError(
                f"VisionTransformer.patch = {self.patch}: must divide both sides of "
                f"the images, which are {height}x{across}"
            )
        tokens = 1 + (height // self.patch) * (across // self.patch)
        k_patch, k_position, *k_blocks = jax.random.split(key, 2 + self.layers)
        kernel = (self.patch, self.patch, channels, self.width)
        params: dict[str, Any] = {
            "patches": {
                "w": jax.nn.initializers.lecun_normal(in_axis=(0, 1, 2))(
                    k_patch, kernel
                ),
                "b": jnp.zeros((self.width,)),
            },
            "class_token": jnp.zeros((1, 1, self.width)),
            "position": 0.02 * jax.random.normal(k_position, (1, tokens, self.width)),
            "norm": norm_params(self.width),
            "head": {
                "w": jnp.zeros((self.width, self.outputs)),
                "b": jnp.zeros((self.outputs,)),
            },
        }
        blocks = {f"block{i}": self._init_block(k) for i, k in enumerate(k_blocks)}
        return params | blocks, None

    def _init_block(self, key: Key) -> dict[str, Any]:
        width, inner, size = self.width, self.inner, self.width // self.heads
        keys = jax.random.split(key, 8)

        def projection(k: Key) -> dict[str, Array]:
            w = _xavier(k, (width, width)).reshape(width, self.heads, size)
            return {"w": w, "b": jnp.zeros((self.heads, size))}

        out = _xavier(keys[3], (width, width)).reshape(self.heads, size, width)
        return {
            "norm1": norm_params(width),
            "query": projection(keys[0]),
            "key": projection(keys[1]),
            "value": projection(keys[2]),
            "out": {"w": out, "b": jnp.zeros((width,))},
            "norm2": norm_params(width),
            "up": {
                "w": _xavier(keys[4], (width, inner)),
                "b": _small(keys[5], (inner,)),
            },
            "down": {
                "w": _xavier(keys[6], (inner, width)),
                "b": _small(keys[7], (width,)),
            },
        }

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        p: Any = params
        x = self._embed(p["patches"], inputs)
        first = jnp.broadcast_to(p["class_token"], (x.shape[0], 1, self.width))
        x = jnp.concatenate([first, x], axis=1) + p["position"]
        for i in range(self.layers):
            block = p[f"block{i}"]
            x = x + attend(block, _norm(block["norm1"], x))
            hidden = _norm(block["norm2"], x) @ block["up"]["w"] + block["up"]["b"]
            x = x + jax.nn.gelu(hidden) @ block["down"]["w"] + block["down"]["b"]
        seen = _norm(p["norm"], x[:, 0])
        return seen @ p["head"]["w"] + p["head"]["b"], state

    def _embed(self, patches: Any, images: Array) -> Array:
        """[n, side, side, c] to [n, patches, width]: a convolution whose stride is its
        size, written as one matrix product (convolutions are slow on CPUs)."""
        n, height, across, channels = images.shape
        rows, columns, size = height // self.patch, across // self.patch, self.patch
        cut = images.reshape(n, rows, size, columns, size, channels)
        cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, -1)
        return cut @ patches["w"].reshape(-1, self.width) + patches["b"]


def attend(block: Any, x: Array) -> Array:
    """Self-attention over all positions of [batch, tokens, width]."""

    def project(layer: Any) -> Array:
        return jnp.einsum("btw,whd->bthd", x, layer["w"]) + layer["b"]

    query, key = project(block["query"]), project(block["key"])
    value = project(block["value"])
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return jnp.einsum("bthd,hdw->btw", mixed, block["out"]["w"]) + block["out"]["b"]


def _norm(params: Any, x: Array) -> Array:
    """Layer norm with this network's epsilon (that of `networks.layer_norm` is ten
    times larger)."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    normal = (x - mean) * jax.lax.rsqrt(variance + _EPSILON)
    return normal * params["scale"] + params["offset"]
