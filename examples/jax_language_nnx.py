"""A small GPT in Flax NNX, its layers stacked and scanned over.

    python examples/jax_language_nnx.py [--compare] [--steps 300]

Stacking makes compile time independent of depth. A stacked matrix has a leading axis
for the layers; Celo2 orthogonalises each layer's matrix by itself. A stacked vector (a
norm's scale) has two axes and counts as a matrix. The text is that of
torch_language.py.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax_judging import example

from lopax import data
from lopax._core.errors import DatasetNotFound

CONTEXT, WIDTH, LAYERS, HEADS, BATCH = 64, 64, 2, 4, 16


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes to train on, and held out ones."""
    try:
        found: Any = data.load("tinyshakespeare")
    except DatasetNotFound:
        found = data.load("sklearn_descr")
    return np.minimum(found.train, 127), np.minimum(found.valid, 127)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, use_bias=False, rngs=rngs)
        self.mix = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(shape), 2, 0)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(y.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(rngs)

        self.token_embed = nnx.Embed(128, WIDTH, rngs=rngs)
        self.position_embed = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = stacked(rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.lm_head = nnx.Linear(WIDTH, 128, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.token_embed(tokens) + self.position_embed.embedding[...]

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x: jax.Array, block: Block) -> jax.Array:
            return block(x)

        return self.lm_head(self.norm(through(x, self.blocks)))


def train(opt: optax.GradientTransformation, steps: int) -> tuple[Any, Any]:
    """Training losses [steps], and the held-out loss in nats per character."""
    corpus, held_out = (jnp.asarray(x, jnp.int32) for x in text())
    model = GPT(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, opt, wrt=nnx.Param)

    def loss_at(model: GPT, source: jax.Array, starts: jax.Array) -> jax.Array:
        rows = source[starts[:, None] + jnp.arange(CONTEXT + 1)]
        scores = model(rows[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, rows[:, 1:])
        return losses.mean()

    @nnx.jit
    def step(model: GPT, optimizer: nnx.Optimizer, key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (BATCH,), 0, len(corpus) - CONTEXT - 1)
        loss, grads = nnx.value_and_grad(loss_at)(model, corpus, starts)
        optimizer.update(model, grads, value=loss)
        return loss

    keys = jax.random.split(jax.random.key(1), steps)
    losses = [step(model, optimizer, key) for key in keys]
    starts = jnp.linspace(0, len(held_out) - CONTEXT - 2, 128).astype(int)
    return losses, nnx.jit(loss_at)(model, held_out, starts)


if __name__ == "__main__":
    example(str(__doc__), train, steps=300, unit="held-out loss")
