"""µLO: Adafac-MLP whose step on hidden matrices shrinks with their width.

Thérien, Joseph, Knyazev, Oyallon, Rish and Belilovsky, "µLO: Compute-Efficient
Meta-Generalization of Learned Optimizers" (2024, arXiv 2406.00153). Under the maximal
update parametrisation, a rule meta-trained on narrow networks works on wide ones: the
update of a matrix between two hidden layers is divided by its fan-in relative to
`base_width`; input and output layers, biases and norms keep theirs. The other half of
the parametrisation is the user's network: output weights of standard deviation one
with the output divided by its fan-in, everything else initialised by its fan-in.

Which tensors are hidden matrices is decided by name and rank (`_core.routing`): the
default takes every tensor of rank two or more whose name does not look like an
embedding, an input or an output layer. Kernels are read as [..., fan-in, fan-out].

Needs neither the loss nor the horizon. 2,409 meta-parameters (39 -> 32 -> 32 -> 2 and
seven decays), all of which act. Published weights exist for PyTorch only; their layout
could not be checked against a file, so there is no translation of it here.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from lopax._core import routing
from lopax._core.config import check_range
from lopax._core.lifting import Leaf
from lopax._core.routing import Route
from lopax._core.types import Count, Key, Theta
from lopax.architectures.adafac_mlp import AdafacMLP, AdafacMLPConfig
from lopax.blocks import adafac_net
from lopax.blocks.counted_rule import CountedRule
from lopax.blocks.element_rule import ElementRule
from lopax.blocks.moments import Moments
from lopax.rules.element_net import ElementNet, Numbers

ROLES = ("hidden", "other")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuLOConfig:
    """Settings of `MuLO`; sizes and scales are the published ones."""

    hidden: int = 32
    step_mult: float = 1e-2
    exp_mult: float = 1e-3
    base_width: float = 64.0
    """Fan-in at which a hidden matrix gets the full step."""
    routes: tuple[Route, ...] = (
        Route(role="other", max_rank=1),
        Route(role="other", name=r"(?i)embed|input|output|head|logit"),
    )
    default_role: str = "hidden"
    backend: str = "auto"
    """As Celo's."""

    def __post_init__(self) -> None:
        check_range(self, "base_width", above=0.0)
        routing.check_roles(self, self.routes, self.default_role, ROLES)
        _ = self.element_rule  # which checks the rest

    @property
    def element_net(self) -> ElementNet:
        return self.element_rule.element_net

    @property
    def element_rule(self) -> AdafacMLPConfig:
        """Settings of the rule whose steps are scaled."""
        return AdafacMLPConfig(
            hidden=self.hidden,
            step_mult=self.step_mult,
            exp_mult=self.exp_mult,
            backend=self.backend,
        )


class MuLO(ElementRule, CountedRule[Moments]):
    """See the module docstring."""

    name: ClassVar[str] = "mulo"
    roles: ClassVar[tuple[str, ...]] = ROLES
    reference: ClassVar[str] = "Thérien et al., 2024, arXiv 2406.00153"
    param_like: ClassVar[tuple[str, ...]] = ("second",)
    grad_clip: ClassVar[float] = adafac_net.GRADIENT_BOUND

    def __init__(self, config: MuLOConfig | None = None):
        self.config = config or MuLOConfig()
        self._rule = AdafacMLP(self.config.element_rule)

    def width_factor(self, leaf: Leaf) -> float:
        """What the tensor's step is multiplied by."""
        c = self.config
        if self.role(leaf) != "hidden" or len(leaf.shape) < 2:
            return 1.0
        return c.base_width / max(leaf.shape[-2], 1)

    def init_theta(self, key: Key) -> Theta:
        return self._rule.init_theta(key)

    def init_tensor(self, theta: Theta, param: Array) -> Moments:
        return self._rule.init_tensor(theta, param)

    def step_scale(self, theta: Theta) -> float:
        return self._rule.step_scale(theta)

    def numbers(
        self, theta: Theta, context: Count, leaf: Leaf, param: Array
    ) -> Numbers:
        found = self._rule.numbers(theta, context, leaf, param)
        return found._replace(scale=found.scale * self.width_factor(leaf))
