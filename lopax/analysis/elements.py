"""Per-element networks: what enters their first layer, channel by channel.

Celo, Celo2, VeLO, Adafac-MLP, STAR and µLO apply one small MLP to every element. This
names its inputs and puts changed networks in its place, so that a channel can be taken
away without touching the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopax._core.errors import NotApplicable
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Count, Theta
from lopax.architectures.classes import (
    STAR,
    AdafacMLP,
    Celo,
    Celo2,
    Celo2Base,
    MuLO,
    VeLO,
)
from lopax.architectures.described import XP
from lopax.rules import element_plain as plain
from lopax.rules import form
from lopax.rules.channels import GROUPS
from lopax.rules.element_net import ElementNet
from lopax.rules.form import Place
from lopax.rules.time_features import NUM_TIME, tanh_of_step


class InputGroup(NamedTuple):
    """A named stretch of the network's inputs."""

    name: str
    meaning: str
    start: int
    channels: int


class NamedInputs(NamedTuple):
    """The inputs of an architecture's per-element network."""

    key: str  # where theta keeps it
    net: ElementNet
    timed: bool  # eleven features of the step count follow the channels

    @property
    def inputs(self) -> tuple[InputGroup, ...]:
        """All groups in order, time included."""
        found, start = [], 0
        for group in (GROUPS[name] for name in self.net.channels):
            meaning = group.meaning.replace("+-", "±")
            found.append(InputGroup(group.name, meaning, start, group.width))
            start += group.width
        if self.timed:
            meaning = "steps made so far"
            found.append(InputGroup("time", meaning, start, NUM_TIME))
        return tuple(found)

    @property
    def num_inputs(self) -> int:
        return sum(g.channels for g in self.inputs)

    def means(
        self, grads: Sequence[Array], params: Sequence[Array], states: Any, step: Count
    ) -> Float[Array, "inputs"]:
        """The mean of every (normalised) input over elements, then over tensors.

        **Arguments:**

        - `states`: the tensors' states after this step's gradients. Tensors treated
            by another rule (Adam's, in Celo2) and vectors that lack row and column
            inputs where the network splits them are left out.
        """
        rows = []
        for grad, param, state in zip(grads, params, states, strict=True):
            if not hasattr(state, "factored") or not grad.size:
                continue
            if self.net.seen(grad.ndim) == self.net.channels:
                rows.append(self._means_of(grad, param, state))
        mean = jnp.mean(jnp.stack(rows), axis=0)
        if self.timed:
            times = tanh_of_step(XP, step.astype(jnp.float32))
            mean = jnp.concatenate([mean, times])
        return mean

    def _means_of(
        self, grad: Array, param: Array, state: Any
    ) -> Float[Array, "channels"]:
        """Of one tensor."""
        net, place = self.net, Place(grad.shape, reading=tuple(range(grad.ndim)))
        lines = form.complete(plain.lines(XP, place, state))
        view = plain.view_of(XP, place, net, grad, param, state, lines)
        scales, _ = form.complete(plain.normalisers(XP, place, net, view))
        factors = (x for name in net.channels for x in scales[name])
        seen = zip(view.channels(net.channels), factors, strict=True)
        return jnp.stack([jnp.mean(x * s) for x, s in seen])

    def without(
        self, theta: Theta, group: InputGroup, means: Float[Array, "inputs"]
    ) -> Theta:
        """Theta whose network sees the group's mean instead of the group."""
        net = theta[self.key]
        rows = slice(group.start, group.start + group.channels)
        # A bank of networks has a leading axis; inputs are always the last but one.
        weights = net["w0"][..., rows, :]
        constant = jnp.einsum("...ij,i->...j", weights, means[rows])
        changed = {
            **net,
            "w0": net["w0"].at[..., rows, :].set(0.0),
            "b0": net["b0"] + constant,
        }
        return {**theta, self.key: changed}

    def weight_sizes(self, theta: Theta) -> Float[np.ndarray, "groups"]:
        """Root sum of squares of the first layer's weights, by group."""
        w0 = np.asarray(theta[self.key]["w0"], np.float64)
        return np.asarray(
            [
                np.sqrt(np.sum(w0[..., g.start : g.start + g.channels, :] ** 2))
                for g in self.inputs
            ]
        )


_KEYS: dict[type[LearnedOptimizer], tuple[str, bool]] = {
    Celo: ("rule", False),
    Celo2: ("rule", False),
    Celo2Base: ("rule", False),
    VeLO: ("bank", False),
    AdafacMLP: ("net", True),
    STAR: ("net", True),
    MuLO: ("net", True),
}


def has_element_net(optimizer: LearnedOptimizer) -> bool:
    """Whether `element_net` knows the architecture."""
    return isinstance(optimizer, tuple(_KEYS))


def element_net(optimizer: LearnedOptimizer) -> NamedInputs:
    """What the per-element network of an architecture sees; raises `NotApplicable` if
    it has none with named inputs."""
    for kind, (key, timed) in _KEYS.items():
        if isinstance(optimizer, kind):
            config: Any = optimizer.config  # type: ignore[attr-defined]
            return NamedInputs(key, config.element_net, timed)
    names = ", ".join(k.name for k in _KEYS)
    raise NotApplicable(
        f"{optimizer.name!r} has no per-element network with named inputs, so there is "
        f"no feature to take away: importance works for {names}. For "
        f"{optimizer.name!r} use compare_directions, gradient_response and "
        "invariances; recurrent_view if it is a coordinate-wise recurrent rule"
    )
