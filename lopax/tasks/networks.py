"""Feed-forward task networks as static objects over nested dicts of arrays.

A network is a frozen, hashable description; parameters and state are passed in.
Weights start as Haiku's defaults do: truncated normal with standard deviation
1/sqrt(fan-in), zero biases.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax._core.config import check_choice
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params, TaskState
from lopax.nets import initializers

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


class Network(abc.ABC):
    """A function of inputs with parameters and (perhaps) state."""

    @abc.abstractmethod
    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        """Parameters and state for inputs [batch, *input_shape]."""

    @abc.abstractmethod
    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        """Outputs [batch, ...] and the next state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP(Network):
    """Dense layers; inputs are flattened. {"layer0": {"w", "b"}, ...}.

    Raises `ConfigError` for an unknown activation or a size below one.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: str = "relu"
    layer_norm: bool = False
    """Normalise each hidden layer before its activation; adds "scale", "offset"."""
    output_activation: str | None = None

    def __post_init__(self) -> None:
        check_choice(self, "activation", ACTIVATIONS)
        if self.output_activation is not None:
            check_choice(self, "output_activation", ACTIVATIONS)
        check_sizes(self, "hidden")

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        sizes = (_product(input_shape), *self.hidden, self.outputs)
        pairs = enumerate(itertools.pairwise(sizes))
        params = linears(key, {f"layer{i}": pair for i, pair in pairs})
        for i, width in enumerate(self.hidden if self.layer_norm else ()):
            params[f"layer{i}"] |= norm_params(width)
        return params, None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        x = inputs.reshape(inputs.shape[0], -1)
        last = len(self.hidden)
        for i in range(last + 1):
            layer = params[f"layer{i}"]
            x = x @ layer["w"] + layer["b"]
            if i < last:
                x = layer_norm(layer, x) if self.layer_norm else x
                x = ACTIVATIONS[self.activation](x)
        if self.output_activation is not None:
            x = ACTIVATIONS[self.output_activation](x)
        return x, state


def linears(
    key: Key, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, Array]]:
    """{name: {"w": [fan_in, fan_out], "b": [fan_out]}} for {name: (fan_in, fan_out)}.

    Weights are truncated normal with standard deviation 1/sqrt(fan-in), biases zero.
    One draw serves all layers: each further one would lengthen the compilation of
    every program that initialises the task.
    """
    counts = [i * o for i, o in sizes.values()]
    normal = initializers.truncated_normal(key, (sum(counts),), 1.0)
    parts = jnp.split(normal, np.cumsum(counts)[:-1])
    return {
        name: {
            "w": part.reshape(fan_in, fan_out) * fan_in**-0.5,
            "b": jnp.zeros((fan_out,)),
        }
        for part, (name, (fan_in, fan_out)) in zip(parts, sizes.items(), strict=True)
    }


def norm_params(size: int) -> dict[str, Array]:
    """{"scale": ones [size], "offset": zeros [size]}."""
    return {"scale": jnp.ones((size,)), "offset": jnp.zeros((size,))}


def layer_norm(params: Any, x: Array) -> Array:
    """Normalises the last axis (Ba et al., 2016, arXiv 1607.06450)."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    normal = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return normal * params["scale"] + params["offset"]


def check_sizes(owner: object, name: str) -> None:
    """Raises `ConfigError` unless the field is a tuple of positive integers."""
    value = getattr(owner, name)
    whole = isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)
    if not whole:
        raise ConfigError(
            f"{type(owner).__name__}.{name} = {value!r}: "
            "must be a tuple of positive integers"
        )


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
