"""The policy and value network of the agents."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_choice
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params
from lopax.tasks.conv import convolve
from lopax.tasks.networks import ACTIVATIONS, check_sizes, linears

KERNEL = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCritic:
    """2x2 convolutions (if `channels` names any), dense layers, and two linear heads.

    Parameters are {"conv0": {"w", "b"}, ..., "dense0": ..., "actor": ..., "critic":
    ...}; weights start truncated normal with 1/sqrt(fan-in), biases at zero.

    Raises `ConfigError` for sizes below one or an unknown activation.
    """

    hidden: tuple[int, ...] = (64,)
    channels: tuple[int, ...] = ()
    activation: str = "relu"

    def __post_init__(self) -> None:
        check_choice(self, "activation", ACTIVATIONS)
        check_sizes(self, "hidden")
        check_sizes(self, "channels")

    def init(self, key: Key, shape: tuple[int, ...], num_actions: int) -> Params:
        """Parameters for observations of `shape`; `ConfigError` if convolutions are
        asked for and the shape is not (rows, columns, planes)."""
        if self.channels and len(shape) != 3:
            raise ConfigError(
                f"ActorCritic.channels = {self.channels}: convolutions need "
                f"observations (rows, columns, planes), these are {shape}; use "
                "channels = ()"
            )
        sizes: dict[str, tuple[int, int]] = {}
        planes = shape[-1] if shape else 1
        for i, width in enumerate(self.channels):
            sizes[f"conv{i}"] = (KERNEL * KERNEL * planes, width)
            planes = width
        size = 1
        for n in shape[:-1]:
            size *= n
        size *= planes
        for i, width in enumerate(self.hidden):
            sizes[f"dense{i}"] = (size, width)
            size = width
        heads = {"actor": (size, num_actions), "critic": (size, 1)}
        params = linears(key, {**sizes, **heads})
        for i, width in enumerate(self.channels):
            layer = params[f"conv{i}"]
            layer["w"] = layer["w"].reshape(KERNEL, KERNEL, -1, width)
        return params

    def apply(
        self, params: Params, observations: Float[Array, "n *s"]
    ) -> tuple[Float[Array, "n a"], Float[Array, "n"]]:
        """Logits of the actions, and values."""
        activation = ACTIVATIONS[self.activation]
        x = observations
        for i in range(len(self.channels)):
            layer = params[f"conv{i}"]
            x = activation(convolve(x, layer["w"], 1) + layer["b"])
        x = x.reshape(x.shape[0], -1)
        for i in range(len(self.hidden)):
            x = activation(_dense(params[f"dense{i}"], x))
        return _dense(params["actor"], x), _dense(params["critic"], x)[..., 0]


def log_probability(logits: Float[Array, "*n a"], actions: Array) -> Float[Array, "*n"]:
    """Of the actions taken [*n] int32."""
    chosen = actions[..., None] == jnp.arange(logits.shape[-1])
    logs = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.where(chosen, logs, 0.0), axis=-1)


def entropy(logits: Float[Array, "*n a"]) -> Float[Array, "*n"]:
    """Of the policy, in nats."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def _dense(layer: Params, x: Array) -> Array:
    return x @ layer["w"] + layer["b"]
