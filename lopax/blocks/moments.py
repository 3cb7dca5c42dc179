"""The accumulators of one tensor that most per-element rules keep.

Three momenta, one second moment and three factored second moments, with their decays
either fixed or meta-learned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopax.blocks import accumulators
from lopax.blocks.accumulators import Factored
from lopax.rules.element_net import Decays

PUBLISHED_DECAYS = Decays((0.9, 0.99, 0.999), (0.999,), (0.9, 0.99, 0.999))
"""What VeLO, Adafac-MLP, STAR and Celo start from or use."""


class Moments(NamedTuple):
    """State of one tensor, none of it bias-corrected."""

    momenta: Float[Array, "3 *s"]
    second: Float[Array, "*s"]
    factored: Factored


def init(param: Any) -> Moments:
    """All-zero accumulators for a tensor like `param` (rank >= 1)."""
    return Moments(
        momenta=accumulators.zeros(3, param),
        second=jnp.zeros(param.shape, jnp.float32),
        factored=accumulators.factored_init(param.shape, 3),
    )


def update(state: Moments, grad: Array, decays: Decays) -> Moments:
    """Accumulators after one more gradient [*s]."""
    second = accumulators.ema(state.second[None], jnp.square(grad), decays.second)
    return Moments(
        momenta=accumulators.ema(state.momenta, grad, decays.momenta),
        second=second[0],
        factored=accumulators.factored_update(state.factored, grad, decays.factored),
    )


def reached(state: Moments) -> Bool[Array, "*s"]:
    """Which elements ever saw a gradient other than zero."""
    return accumulators.reached(state.momenta, state.second[None])


def zero_offsets() -> dict[str, Array]:
    """Meta-parameters of learned decays, at their starting point."""
    sizes = Decays(*(len(d) for d in PUBLISHED_DECAYS))
    return {name: jnp.zeros((n,), jnp.float32) for name, n in sizes._asdict().items()}


def learned_decays(offsets: dict[str, Array]) -> Decays:
    """Decays from the offsets that `zero_offsets` starts."""
    return Decays(
        **{
            name: accumulators.learned_decays(start, offsets[name])
            for name, start in PUBLISHED_DECAYS._asdict().items()
        }
    )
