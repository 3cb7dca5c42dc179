"""Character language models: recurrent ones and a small transformer.

Inputs are symbol numbers [batch, length], outputs logits [batch, length, vocabulary]
for the symbol that follows each position.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params, TaskState
from lopax.nets import initializers, lstm
from lopax.nets.lstm import LSTMState
from lopax.tasks.networks import Network, layer_norm, linears, norm_params

CELLS = ("gru", "lstm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentLM(Network):
    """Embedding, one recurrent layer from a zero state, dense logits.

    Raises `ConfigError` for an unknown cell or a size below one.
    """

    vocabulary: int
    cell: str = "gru"
    embedding: int = 32
    hidden: int = 64

    def __post_init__(self) -> None:
        check_choice(self, "cell", CELLS)
        for name in ("vocabulary", "embedding", "hidden"):
            check_range(self, name, low=1)

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        del input_shape
        k_embed, k_layers = jax.random.split(key)
        fan_in = self.embedding + self.hidden
        if self.cell == "lstm":
            sizes = {"gates": (fan_in, 4 * self.hidden)}
        else:
            sizes = {
                "gates": (fan_in, 2 * self.hidden),
                "candidate": (fan_in, self.hidden),
            }
        layers = linears(k_layers, {**sizes, "head": (self.hidden, self.vocabulary)})
        table = embedding_init(k_embed, self.vocabulary, self.embedding)
        params = {"embedding": table, **layers}
        return params, None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        x = jnp.swapaxes(embed(params["embedding"], inputs), 0, 1)
        zeros = jnp.zeros((inputs.shape[0], self.hidden), x.dtype)
        if self.cell == "lstm":

            def step(carry: Any, x_t: Array) -> tuple[Any, Array]:
                carry = lstm.apply(params["gates"], x_t, carry)
                return carry, carry.hidden

            _, hidden = jax.lax.scan(step, LSTMState(zeros, zeros), x)
        else:

            def step(carry: Any, x_t: Array) -> tuple[Any, Array]:
                carry = _gru(params, x_t, carry)
                return carry, carry

            _, hidden = jax.lax.scan(step, zeros, x)
        logits = hidden @ params["head"]["w"] + params["head"]["b"]
        return jnp.swapaxes(logits, 0, 1), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerLM(Network):
    """A decoder-only transformer with the norm before each block, learned positions
    and GELU (Radford et al., 2019).

    Raises `ConfigError` for a size below one or a width that `heads` does not divide.
    """

    vocabulary: int
    width: int = 32
    heads: int = 4
    layers: int = 2
    expansion: int = 4
    """Width of the hidden layer of each MLP, in multiples of `width`."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "heads", "layers", "expansion"):
            check_range(self, name, low=1)
        if self.width % self.heads:
            raise ConfigError(
                f"TransformerLM.width = {self.width}: must be a multiple of heads = "
                f"{self.heads}"
            )

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        k_embed, k_layers = jax.random.split(key)
        width, inner = self.width, self.width * self.expansion
        block = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, inner),
            "down": (inner, width),
        }
        names = [f"block{i}" for i in range(self.layers)]
        sizes = {f"{b}.{name}": size for b in names for name, size in block.items()}
        layers = linears(k_layers, {**sizes, "head": (width, self.vocabulary)})
        length = input_shape[0]
        tables = embedding_init(k_embed, self.vocabulary + length, width)
        params: dict[str, Any] = {
            "embedding": tables[: self.vocabulary],
            "position": tables[self.vocabulary :],
            "norm": norm_params(width),
            "head": layers["head"],
        }
        for b in names:
            params[b] = {name: layers[f"{b}.{name}"] for name in block}
            params[b] |= {"norm1": norm_params(width), "norm2": norm_params(width)}
        return params, None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        x = embed(params["embedding"], inputs) + params["position"]
        for i in range(self.layers):
            block = params[f"block{i}"]
            x = x + self._attend(block, layer_norm(block["norm1"], x))
            inner = jax.nn.gelu(_dense(block["up"], layer_norm(block["norm2"], x)))
            x = x + _dense(block["down"], inner)
        return _dense(params["head"], layer_norm(params["norm"], x)), state

    def _attend(self, block: Any, x: Array) -> Array:
        """Causal self-attention over [batch, length, width]."""
        batch, length, width = x.shape
        qkv = _dense(block["qkv"], x).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // self.heads) ** -0.5
        past = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return _dense(block["out"], mixed.reshape(batch, length, width))


def embedding_init(key: Key, count: int, size: int) -> Float[Array, "n e"]:
    """[count, size], truncated normal with standard deviation 0.1."""
    return initializers.truncated_normal(key, (count, size), 0.1)


def embed(table: Float[Array, "v e"], symbols: Int[Array, "*n"]) -> Array:
    """Rows of `table`. A product with one-hot vectors: for vocabularies of characters
    its gradient (a matrix product) is faster on CPU than a gather's (a scatter)."""
    return jax.nn.one_hot(symbols, table.shape[0], dtype=table.dtype) @ table


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["w"] + layer["b"]


def _gru(params: Any, x: Array, hidden: Array) -> Array:
    """A gated recurrent unit, the reset gate applied to the state before its product
    (Cho et al., 2014, arXiv 1406.1078)."""
    gates = jax.nn.sigmoid(_dense(params["gates"], jnp.concatenate([x, hidden], -1)))
    update, reset = jnp.split(gates, 2, axis=-1)
    mixed = jnp.concatenate([x, reset * hidden], axis=-1)
    candidate = jnp.tanh(_dense(params["candidate"], mixed))
    return (1.0 - update) * hidden + update * candidate
