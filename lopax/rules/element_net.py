"""A tensor's step as one small network, applied to every element: the description.

Celo, VeLO, Celo2, Adafac-MLP and µLO keep the same accumulators and put a small MLP on
(some of) the same channels. `ElementNet` says what distinguishes them, and nothing of
how it is computed: a driver runs the plain form or a kernel, whichever covers it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from lopax._core.errors import ConfigError
from lopax._core.sizes import SizeBounds
from lopax.rules import channels
from lopax.rules.channels import GROUPS, VELO

ARRAYS: tuple[str, ...] = ("w0", "b0", "w1", "b1", "w2", "b2")
"""Of a network with two hidden layers of one width."""
NUM_DECAYS = 3
"""Of the momenta, and of the factored second moments."""
SIZE_EPS = 1e-9
"""Added to a tensor's mean square, where its root is a factor of the step."""


class Epsilons(NamedTuple):
    """What keeps quotients finite."""

    second: float = 1e-6
    """Added to the second moment under the root."""
    channel: float = 1e-5
    """Added to a channel's mean square under the root of its normaliser."""
    vector: float = 0.0
    """Added to a vector's second moment in its factored momenta."""


class Decays(NamedTuple):
    """One decay per accumulator: numbers, or arrays where they are meta-learned."""

    momenta: Any  # [3]
    second: Any  # [1]
    factored: Any  # [3]


class ElementNet(NamedTuple):
    """What a rule's elements see, and what becomes of the network's outputs.

    Its step is `-scale * direction * exp(exp_mult * magnitude)`, times the tensor's
    size if there are `bounds` of it; direction and magnitude are the first two outputs.
    Further outputs are for rules that step by themselves (STAR).
    """

    hidden: int
    """Width of both hidden layers."""
    outputs: int = 2
    exp_mult: float = 0.0
    """0: no magnitude."""
    channels: tuple[str, ...] = VELO
    """Names of the groups whose channels the rows of w0 belong to, in order."""
    vector_channels: tuple[str, ...] | None = None
    """Those of them that vectors see, with their rows of w0. None: all."""
    epsilons: Epsilons = Epsilons()
    per_matrix: bool = False
    """Channels are normalised over each matrix of a tensor, or over all of it."""
    bounds: SizeBounds | None = None
    """Where the step is times the tensor's root mean square: what counts as its least
    and most."""
    hold_unreached: bool = True
    """Elements that never saw a gradient other than zero have a step of zero; or the
    rule sees to that."""

    @property
    def num_channels(self) -> int:
        return channels.count(self.channels)

    def seen(self, rank: int) -> tuple[str, ...]:
        """Names of the groups a tensor of this rank has."""
        return self.channels if rank > 1 else self.vector_channels or self.channels

    def rows(self, rank: int) -> tuple[int, ...]:
        """The rows of w0 that belong to them."""
        return channels.places(self.seen(rank), self.channels)

    def shapes(self, inputs: int | None = None) -> dict[str, tuple[int, ...]]:
        """The network's arrays; `inputs` where there are more than the channels."""
        sizes = (inputs or self.num_channels, self.hidden, self.hidden, self.outputs)
        found: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            found[f"w{i}"], found[f"b{i}"] = (fan_in, fan_out), (fan_out,)
        return found

    def checked(self) -> ElementNet:
        """Itself. Raises `ConfigError` for what no driver could make sense of."""
        unknown = [n for n in self.channels if n not in GROUPS]
        if unknown:
            raise ConfigError(
                f"ElementNet.channels: {unknown[0]!r} is no group of channels; there "
                "are " + ", ".join(GROUPS)
            )
        lost = [n for n in self.vector_channels or () if n not in self.channels]
        if lost:
            raise ConfigError(
                f"ElementNet.vector_channels: {lost[0]!r} is not among the channels"
            )
        if self.hidden < 1 or self.outputs < (2 if self.exp_mult else 1):
            raise ConfigError(
                f"ElementNet: hidden = {self.hidden}, outputs = {self.outputs} and "
                f"exp_mult = {self.exp_mult:g} do not fit; a magnitude is a second "
                "output"
            )
        return self


class Numbers(NamedTuple):
    """What one step of it needs beside the tensor, as a framework's arrays."""

    network: Mapping[str, Any]  # "w0" [channels, hidden], "b0", ..., "b2" [outputs]
    decays: Decays
    scale: Any  # []


def check_decays(config: Any, *names: str, number: int | None = NUM_DECAYS) -> None:
    """Raises `ConfigError` unless these settings are three decays each, or with
    `number=None` one or more."""
    many = "one or more numbers" if number is None else "three numbers"
    for name in names:
        decays = getattr(config, name)
        count = len(decays) == number if number else len(decays) > 0
        if not count or not all(0.0 <= d < 1.0 for d in decays):
            raise ConfigError(
                f"{type(config).__name__}.{name} = {decays!r}: must be {many} in [0, 1)"
            )
