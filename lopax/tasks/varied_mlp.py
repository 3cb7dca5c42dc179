"""An MLP that is another one in every run: width and activation are drawn.

What a run draws is part of its state, as arrays, so runs of different networks share
one program under `vmap`. Narrower layers are those of the widest with units masked;
masked units have no effect and no gradient.
"""

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
from lopax.tasks.networks import ACTIVATIONS, Network, check_sizes, linears

CHOICES = tuple(ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedMLP(Network):
    """Dense layers of at most `hidden` units each; the state holds what was drawn.

    Widths are log-uniform in [least, hidden], one for all layers as a fraction of
    theirs; the activation is one of `CHOICES`; weights start at 1/sqrt(fan-in of the
    drawn width) times a factor that is log-uniform in [1 / spread, spread].

    Raises `ConfigError` for a size below one.
    """

    hidden: tuple[int, ...]
    outputs: int
    least: int = 4
    spread: float = 2.0

    def __post_init__(self) -> None:
        check_sizes(self, "hidden")
        check_range(self, "least", low=1, high=min(self.hidden, default=1))
        check_range(self, "spread", low=1.0)

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        k_weights, k_width, k_scale, k_choice = jax.random.split(key, 4)
        sizes = (math.prod(input_shape), *self.hidden, self.outputs)
        pairs = enumerate(itertools.pairwise(sizes))
        params = linears(k_weights, {f"layer{i}": pair for i, pair in pairs})
        widest = min(self.hidden, default=1)
        low = jnp.log(self.least / widest)
        fraction = jnp.exp(jax.random.uniform(k_width, (), minval=low, maxval=0.0))
        span = jnp.log(self.spread)
        scale = jnp.exp(jax.random.uniform(k_scale, (), minval=-span, maxval=span))
        for i in range(len(self.hidden) + 1):
            # Layers behind a masked one have a smaller fan-in.
            gain = scale if i == 0 else scale * jax.lax.rsqrt(fraction)
            params[f"layer{i}"]["w"] *= gain
        choice = jax.random.randint(k_choice, (), 0, len(CHOICES))
        return params, {"fraction": fraction, "activation": choice}

    def apply(
        self, params: Params, state: TaskState, inputs: Array, training: bool = True
    ) -> tuple[Array, TaskState]:
        del training
        drawn: Any = state
        x = inputs.reshape(inputs.shape[0], -1)
        last = len(self.hidden)
        for i in range(last + 1):
            layer = params[f"layer{i}"]  # type: ignore[index]
            x = x @ layer["w"] + layer["b"]
            if i < last:
                kept = jnp.arange(self.hidden[i]) < drawn["fraction"] * self.hidden[i]
                which = [drawn["activation"] == n for n in range(len(CHOICES))]
                values = [ACTIVATIONS[name](x) for name in CHOICES]
                x = jnp.where(kept, jnp.select(which, values), 0.0)
        return x, state
