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
embedding, an input or an output layer. The fan-in is the size of the input axis.

Needs neither the loss nor the horizon. 2,409 meta-parameters (39 -> 32 -> 32 -> 2 and
seven decays), all of which act. Published weights exist for PyTorch only; their layout
could not be checked against a file, so there is no translation of it here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lopax._core import routing
from lopax._core.config import check_range
from lopax._core.routing import Route
from lopax.rules.adafac_mlp import AdafacMLP, AdafacMLPConfig
from lopax.rules.element_net import ElementNet
from lopax.rules.form import Place

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
        _ = self.element_net  # which checks the rest

    @property
    def element_net(self) -> ElementNet:
        """That of the rule whose steps are scaled."""
        return AdafacMLPConfig(
            hidden=self.hidden,
            step_mult=self.step_mult,
            exp_mult=self.exp_mult,
            backend=self.backend,
        ).element_net


class MuLO(AdafacMLP):
    """See the module docstring."""

    name: ClassVar[str] = "mulo"
    reference: ClassVar[str] = "Thérien et al., 2024, arXiv 2406.00153"
    config_class: ClassVar[type] = MuLOConfig
    roles: ClassVar[tuple[str, ...]] = ROLES

    def factor(self, place: Place) -> float:
        if place.role != "hidden" or place.rank < 2:
            return 1.0
        return self.config.base_width / max(place.shape[place.matrix[0]], 1)

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return arrays
