"""From a network's output to a loss: what it is, how it is bounded, what else is said.

A head is static and hashable; `SupervisedTask` calls it inside jit.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lopax._core.types import Scalar


class Head(abc.ABC):
    """How outputs are compared with targets."""

    @abc.abstractmethod
    def loss(self, outputs: Array, inputs: Array, targets: Array) -> Scalar:
        """Mean loss [] of a batch."""

    @property
    @abc.abstractmethod
    def bound(self) -> float:
        """Where the meta-loss clips (see `Task.normalize`)."""

    def metrics(self, outputs: Array, targets: Array) -> dict[str, Scalar]:
        """Named extra measures, each []; none by default."""
        del outputs, targets
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Head):
    """Softmax cross-entropy, averaged over everything but the class axis.

    The bound is 1.5 ln(classes), half as much again as a uniform guess costs (Metz et
    al., 2022, arXiv 2211.09760).
    """

    num_classes: int

    def loss(
        self, outputs: Float[Array, "*n c"], inputs: Array, targets: Int[Array, "*n"]
    ) -> Scalar:
        del inputs
        # A sum against one-hot targets, not a gather: on CPU the gather's gradient is
        # a scatter, which costs as much as the rest of a small network.
        chosen = targets[..., None] == jnp.arange(self.num_classes)
        at_target = jnp.sum(jnp.where(chosen, outputs, 0.0), axis=-1)
        return jnp.mean(jax.nn.logsumexp(outputs, axis=-1) - at_target)

    @property
    def bound(self) -> float:
        return 1.5 * math.log(self.num_classes)

    def metrics(self, outputs: Array, targets: Array) -> dict[str, Scalar]:
        hits = jnp.argmax(outputs, axis=-1) == targets
        return {"accuracy": jnp.mean(hits.astype(jnp.float32))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Head):
    """Mean squared error against the inputs themselves, which lie in [0, 1].

    The bound is 1, the worst that outputs in [0, 1] can do.
    """

    def loss(self, outputs: Array, inputs: Array, targets: Array) -> Scalar:
        del targets
        return jnp.mean(jnp.square(outputs - inputs.reshape(outputs.shape)))

    @property
    def bound(self) -> float:
        return 1.0
