"""Variational autoencoders on images (Kingma and Welling, 2014, arXiv 1312.6114).

The loss is the negative evidence bound in nats per pixel: Bernoulli cross-entropy of
one sampled code's reconstruction plus the divergence of the code from a standard
normal distribution.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_choice, check_range
from lopax._core.task import Task
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.tasks.heads import Head
from lopax.tasks.networks import ACTIVATIONS, Network, check_sizes, linears
from lopax.tasks.supervised import SupervisedTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE(Network):
    """Dense encoder, normal code, mirrored decoder; outputs are logits of pixels.

    Raises `ConfigError` for an unknown activation or a size below one.
    """

    pixels: int
    hidden: tuple[int, ...] = (32,)
    code: int = 8
    activation: str = "relu"

    def __post_init__(self) -> None:
        check_sizes(self, "hidden")
        check_range(self, "code", low=1)
        check_range(self, "pixels", low=1)
        check_choice(self, "activation", ACTIVATIONS)

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        del input_shape
        encoder = itertools.pairwise((self.pixels, *self.hidden, 2 * self.code))
        decoder = itertools.pairwise((self.code, *self.hidden[::-1], self.pixels))
        sizes = {f"encoder{i}": pair for i, pair in enumerate(encoder)}
        sizes |= {f"decoder{i}": pair for i, pair in enumerate(decoder)}
        return linears(key, sizes), None

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        """Logits [batch, pixels] of the mean code's reconstruction."""
        del training
        return self.decode(params, self.encode(params, inputs)[0]), state

    def encode(
        self, params: Params, inputs: Array
    ) -> tuple[Float[Array, "n code"], Float[Array, "n code"]]:
        """Means and logarithms of the variances of the codes."""
        flat = inputs.reshape(inputs.shape[0], -1)
        outputs = self._dense(params, "encoder", flat)
        mean, log_variance = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_variance, -10.0, 10.0)

    def decode(self, params: Params, codes: Array) -> Float[Array, "n pixels"]:
        """Logits of the pixels."""
        return self._dense(params, "decoder", codes)

    def _dense(self, params: Params, part: str, x: Array) -> Array:
        last = len(self.hidden)
        for i in range(last + 1):
            layer = params[f"{part}{i}"]  # type: ignore[index]
            x = x @ layer["w"] + layer["b"]
            x = ACTIVATIONS[self.activation](x) if i < last else x
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelBernoulli(Head):
    """Cross-entropy of pixels in [0, 1] under logits, in nats per pixel.

    The bound is twice ln 2, which a constant guess of one half costs.
    """

    def loss(self, outputs: Array, inputs: Array, targets: Array) -> Scalar:
        del targets
        pixels = inputs.reshape(outputs.shape)
        return jnp.mean(jax.nn.softplus(outputs) - pixels * outputs)

    @property
    def bound(self) -> float:
        return 2.0 * math.log(2.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VAETask(SupervisedTask):
    """Training a `VAE`; `evaluate` samples codes, too."""

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        assert isinstance(self.network, VAE)
        inputs, targets = batch
        mean, log_variance = self.network.encode(params, inputs)
        noise = jax.random.normal(key, mean.shape)
        codes = mean + jnp.exp(0.5 * log_variance) * noise
        pixels = self.head.loss(self.network.decode(params, codes), inputs, targets)
        spread = jnp.exp(log_variance) - log_variance - 1.0
        divergence = 0.5 * jnp.mean(jnp.sum(jnp.square(mean) + spread, axis=-1))
        return pixels + divergence / self.network.pixels, task_state

    evaluate = Task.evaluate
