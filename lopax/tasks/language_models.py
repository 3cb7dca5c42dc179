"""Language models over word pieces, in the shapes of the published evaluation tasks.

Unlike `text_networks` (characters), vocabularies are large: embeddings are gathered,
and the models take a key, because one of the published tasks uses dropout.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lopax._core.config import check_range
from lopax._core.types import Key, Params
from lopax.nets import initializers, lstm
from lopax.tasks.networks import layer_norm, norm_params
from lopax.tasks.tokens import PAD

_KEY_SIZE = 32  # of each attention head, whatever the width, as published
_TRUNCATED_STD = 0.87962566103423978  # of a unit normal cut at two deviations


class LanguageModel(abc.ABC):
    """Logits of the next token at each position."""

    vocabulary: int

    @abc.abstractmethod
    def init(self, key: Key) -> Params:
        """Parameters."""

    @abc.abstractmethod
    def apply(
        self, params: Params, tokens: Int[Array, "b t"], key: Key
    ) -> Float[Array, "b t v"]:
        """Logits; `key` is for dropout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderLM(LanguageModel):
    """A decoder-only transformer: norm before each block, GELU, no positions at all
    (the causal mask is the only thing that orders the tokens), heads of size 32.

    Padding is masked out of the attention. Every matrix of a block starts with
    variance 2 / (layers fan-in), embeddings with 1, the head with 1 / fan-in.

    Raises `ConfigError` for a size below one or a dropout outside [0, 1).
    """

    vocabulary: int
    width: int = 32
    heads: int = 4
    layers: int = 2
    expansion: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "heads", "layers", "expansion"):
            check_range(self, name, low=1)
        check_range(self, "dropout", low=0.0, below=1.0)

    def init(self, key: Key) -> Params:
        width, inner = self.width, self.width * self.expansion
        attended = self.heads * _KEY_SIZE
        k_embed, k_head, *k_blocks = jax.random.split(key, 2 + self.layers)
        params: dict[str, Any] = {
            "embedding": initializers.truncated_normal(
                k_embed, (self.vocabulary, width), 1.0
            ),
            "norm": norm_params(width),
            "head": initializers.linear(k_head, width, self.vocabulary),
        }
        sizes = {
            "query": (width, attended),
            "key": (width, attended),
            "value": (width, attended),
            "out": (attended, width),
            "up": (width, inner),
            "down": (inner, width),
        }
        for i, k_block in enumerate(k_blocks):
            keys = jax.random.split(k_block, len(sizes))
            block = {
                name: self._linear(k, *size)
                for k, (name, size) in zip(keys, sizes.items(), strict=True)
            }
            block |= {"norm1": norm_params(width), "norm2": norm_params(width)}
            params[f"block{i}"] = block
        return params

    def _linear(self, key: Key, fan_in: int, fan_out: int) -> dict[str, Array]:
        std = np.sqrt(2.0 / self.layers / fan_in) / _TRUNCATED_STD
        w = initializers.truncated_normal(key, (fan_in, fan_out), float(std))
        return {"w": w, "b": jnp.zeros((fan_out,))}

    def apply(
        self, params: Params, tokens: Int[Array, "b t"], key: Key
    ) -> Float[Array, "b t v"]:
        p: Any = params
        length = tokens.shape[1]
        past = jnp.tril(jnp.ones((length, length), bool))
        visible = past & (tokens != PAD)[:, None, None, :]
        x = gather(p["embedding"], tokens)
        for i in range(self.layers):
            block = p[f"block{i}"]
            k_attend, k_dense = jax.random.split(jax.random.fold_in(key, i))
            seen = self._attend(block, layer_norm(block["norm1"], x), visible)
            x = x + drop(k_attend, self.dropout, seen)
            inner = jax.nn.gelu(_dense(block["up"], layer_norm(block["norm2"], x)))
            x = x + drop(k_dense, self.dropout, _dense(block["down"], inner))
        return _dense(p["head"], layer_norm(p["norm"], x))

    def _attend(self, block: Any, x: Array, visible: Array) -> Array:
        """Self-attention over [batch, length, width] where `visible` [batch, 1, to,
        from] allows it."""

        def project(layer: Any) -> Array:
            y = _dense(layer, x)
            return y.reshape(*x.shape[:-1], self.heads, _KEY_SIZE)

        query, key = project(block["query"]), project(block["key"])
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * _KEY_SIZE**-0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, project(block["value"]))
        return _dense(block["out"], mixed.reshape(*x.shape[:-1], -1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMLM(LanguageModel):
    """Embedding, one LSTM (Haiku's: forget bias +1 in the formula) from a learned
    initial state, dense logits.

    Raises `ConfigError` for a size below one.
    """

    vocabulary: int
    embedding: int = 128
    hidden: int = 256

    def __post_init__(self) -> None:
        for name in ("vocabulary", "embedding", "hidden"):
            check_range(self, name, low=1)

    def init(self, key: Key) -> Params:
        k_embed, k_gates, k_head = jax.random.split(key, 3)
        return {
            "embedding": initializers.truncated_normal(
                k_embed, (self.vocabulary, self.embedding), 1.0
            ),
            "gates": lstm.init(k_gates, self.embedding, self.hidden),
            "head": initializers.linear(k_head, self.hidden, self.vocabulary),
            "initial": {
                "hidden": jnp.zeros((1, self.hidden)),
                "cell": jnp.zeros((1, self.hidden)),
            },
        }

    def apply(
        self, params: Params, tokens: Int[Array, "b t"], key: Key
    ) -> Float[Array, "b t v"]:
        del key
        p: Any = params
        x = jnp.swapaxes(gather(p["embedding"], tokens), 0, 1)
        start = lstm.tile(p["initial"], tokens.shape[0])

        def step(carry: lstm.LSTMState, x_t: Array) -> tuple[lstm.LSTMState, Array]:
            carry = lstm.apply(p["gates"], x_t, carry)
            return carry, carry.hidden

        _, hidden = jax.lax.scan(step, start, x)
        return _dense(p["head"], jnp.swapaxes(hidden, 0, 1))


def gather(table: Float[Array, "v e"], tokens: Int[Array, "*n"]) -> Array:
    """Rows of `table`; tokens are known to be inside."""
    return table.at[tokens].get(mode="promise_in_bounds")


def drop(key: Key, rate: float, x: Array) -> Array:
    """Dropout (Srivastava et al., 2014); the kept values are scaled up."""
    if rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["w"] + layer["b"]
