"""The per-element network of Adafac-MLP, which STAR and µLO build upon.

Inputs are 28 normalised channels and 11 features of the step number that are the same
for all elements; the decays of the accumulators are meta-learned together with the
weights (Metz et al., 2022, arXiv 2203.11860).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.types import Count, Key, Theta
from lopax.blocks import element_features, moments, time_features
from lopax.blocks.element_features import ADAFAC_GROUPS, ElementView
from lopax.blocks.moments import Decays, Moments
from lopax.blocks.normalize import rms_scale
from lopax.nets import dense_mlp, mlp

NUM_INPUTS = element_features.count(ADAFAC_GROUPS) + time_features.NUM_TIME

GRADIENT_BOUND = 1e9
"""The publications clip nothing. Beyond this bound the square of a squared gradient
would leave float32's range, and the published rules produce NaN."""


def init_theta(key: Key, hidden: int, outputs: int) -> Theta:
    """{"decays": offsets, "net": 39 -> hidden -> hidden -> outputs}."""
    net = mlp.init(key, (NUM_INPUTS, hidden, hidden, outputs))
    return {"decays": moments.zero_offsets(), "net": net}


def at_step(theta: Theta, step: Count) -> tuple[Theta, Decays]:
    """The network without its inputs of time, which are the same for all elements and
    so part of its bias, and the decays.

    **Arguments:**

    - `step`: [] int32, updates made before this one.
    """
    net = theta["net"]
    channels = NUM_INPUTS - time_features.NUM_TIME
    times = time_features.tanh_of_step(step)
    late = jnp.dot(times, net["w0"][channels:], precision="highest")
    net = {**net, "w0": net["w0"][:channels], "b0": net["b0"] + late}
    return net, moments.learned_decays(theta["decays"])


def elements(
    net: Theta,
    decays: Decays,
    grad: Array,
    state: Moments,
    param: Array,
    unrolled: bool | None = None,
) -> tuple[list[Array], ElementView, Moments]:
    """The network's outputs for every element, what it saw, and the next state.

    **Arguments:**

    - `net`, `decays`: from `at_step`.
    - `state`: the accumulators before this gradient.
    - `unrolled`: how the network is computed, see `dense_mlp.apply`.
    """
    state = moments.update(state, grad, decays)
    view = moments.view(state, grad, param)
    channels = element_features.compute(ADAFAC_GROUPS, view)
    scales = [rms_scale(x) for x in channels]
    return dense_mlp.apply(net, channels, scales, unrolled), view, state


def from_published(arrays: dict[str, Any], outputs: tuple[int, ...]) -> dict[str, Any]:
    """Published arrays under our path names, with only the given output units."""
    keep = list(outputs)
    decays = {
        "decays/momenta": "momentum_decays",
        "decays/second": "rms_decays",
        "decays/factored": "adafactor_decays",
    }
    found = {ours: arrays[theirs] for ours, theirs in decays.items()}
    for leaf in ("w0", "b0", "w1", "b1"):
        found[f"net/{leaf}"] = arrays[f"nn/~/{leaf}"]
    found["net/w2"] = arrays["nn/~/w2"][:, keep]
    found["net/b2"] = arrays["nn/~/b2"][keep]
    return found


def is_published(arrays: dict[str, Any]) -> bool:
    return "nn/~/w0" in arrays
