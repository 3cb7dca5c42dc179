"""The per-element network of Adafac-MLP, which STAR and µLO build upon.

Inputs are 28 normalised channels and 11 features of the step number that are the same
for all elements; the decays of the accumulators are meta-learned together with the
weights (Metz et al., 2022, arXiv 2203.11860).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lopax._core.types import Count, Key, Theta
from lopax.blocks import moments, time_features
from lopax.nets import mlp
from lopax.rules import channels
from lopax.rules.element_net import Decays, ElementNet, Epsilons
from lopax.rules.time_features import NUM_TIME

NUM_INPUTS = channels.count(channels.ADAFAC) + NUM_TIME

GRADIENT_BOUND = 1e9
"""The publications clip nothing. Beyond this bound the square of a squared gradient
would leave float32's range, and the published rules produce NaN."""


def element_net(hidden: int, outputs: int, exp_mult: float = 0.0) -> ElementNet:
    """What the network sees, and of which size it is."""
    return ElementNet(
        hidden=hidden,
        outputs=outputs,
        exp_mult=exp_mult,
        channels=channels.ADAFAC,
        epsilons=Epsilons(vector=1e-6),
    )


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
    first = NUM_INPUTS - NUM_TIME
    times = time_features.tanh_of_step(step)
    late = jnp.dot(times, net["w0"][first:], precision="highest")
    net = {**net, "w0": net["w0"][:first], "b0": net["b0"] + late}
    return net, moments.learned_decays(theta["decays"])


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
