"""The per-element network of Adafac-MLP, which STAR and µLO build upon.

Inputs are 28 normalised channels and 11 features of the step number that are the same
for all elements; the decays of the accumulators are meta-learned together with the
weights (Metz et al., 2022, arXiv 2203.11860).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lopax.rules import channels, layers, moments, published
from lopax.rules.element_net import ElementNet, Epsilons, Numbers
from lopax.rules.layers import WIDE_CLIP
from lopax.rules.ops import Array, Arrays, Draw, Ops
from lopax.rules.time_features import NUM_TIME, tanh_of_step

NUM_CHANNELS = channels.count(channels.ADAFAC)
GRADIENT_BOUND = WIDE_CLIP


def element_net(hidden: int, outputs: int, exp_mult: float = 0.0) -> ElementNet:
    """What the network sees, and of which size it is."""
    return ElementNet(
        hidden=hidden,
        outputs=outputs,
        exp_mult=exp_mult,
        channels=channels.ADAFAC,
        epsilons=Epsilons(vector=1e-6),
    )


def init_theta(draw: Draw, key: Any, hidden: int, outputs: int) -> dict[str, Any]:
    """{"decays": offsets, "net": 39 -> hidden -> hidden -> outputs}."""
    sizes = (NUM_CHANNELS + NUM_TIME, hidden, hidden, outputs)
    net = layers.mlp_init(draw, key, sizes)
    return {"decays": moments.zero_offsets(draw), "net": net}


def bias(xp: Ops, theta: Any, updates: Array) -> Array:
    """[hidden] the first bias with what the network makes of the step number, which is
    the same for all elements. `updates`: [] int32 made before this one."""
    net = theta["net"]
    times = tanh_of_step(xp, updates * xp.constant(1.0))
    return net["b0"] + xp.matmul(times, net["w0"][NUM_CHANNELS:])


def numbers(xp: Ops, theta: Any, scale: Array, common: Arrays) -> Numbers:
    """The network without its inputs of time, and the decays. `common`: with the
    `bias`."""
    net = dict(theta["net"])
    net["w0"], net["b0"] = net["w0"][:NUM_CHANNELS], common["bias"]
    return Numbers(net, moments.learned(xp, theta["decays"]), scale)


def from_published(arrays: dict[str, Any], outputs: Sequence[int]) -> dict[str, Any]:
    """Published arrays under our path names, with only the given output units."""
    decays = {
        "decays/momenta": "momentum_decays",
        "decays/second": "rms_decays",
        "decays/factored": "adafactor_decays",
    }
    found = {ours: arrays[theirs] for ours, theirs in decays.items()}
    return found | published.under("net", published.mlp(arrays, "nn/~/", outputs))


def is_published(arrays: Mapping[str, Any]) -> bool:
    return "nn/~/w0" in arrays
