"""Adafac-MLP: a small per-element MLP on momenta and factored second moments.

Metz, Freeman, Harrison, Maheswaranathan and Sohl-Dickstein, "Practical Tradeoffs
between Memory, Compute, and Performance in Learned Optimizers" (2022, arXiv
2203.11860), where it is called small_fc_lopt.

Needs neither the loss nor the horizon; sees every parameter, of any shape, and the
number of steps made. 197 meta-parameters: an MLP 39 -> 4 -> 4 -> 2 and the decays of
its 3 + 1 + 3 accumulators. All of them act; the published tree has the same 197.

Differences from the published code: gradients are clipped at 1e9 (it clips nothing),
and momentum decays, like the others, are kept in [0, 1].
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import adafac_net
from lopax.rules.element_net import ElementNet, Numbers
from lopax.rules.element_rule import ElementRule, check_backend
from lopax.rules.form import Advance, Rows
from lopax.rules.ops import Array, Arrays, Draw, Ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafacMLPConfig:
    """Settings of `AdafacMLP`; the defaults fit the published ones."""

    hidden: int = 4
    """Width of the MLP's two hidden layers."""
    step_mult: float = 1e-3
    """Step for an output of one, in the parameters' own units."""
    exp_mult: float = 1e-3
    """Scale of the log-magnitude output."""
    backend: str = "auto"
    """As Celo's."""
    unrolled: bool | None = None
    """Whether JAX computes the network weight by weight (one pass over the elements)
    or as matrix products. None: by its width. Back-propagation through many updates of
    the unrolled form takes minutes to compile."""

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_backend(self)

    @property
    def element_net(self) -> ElementNet:
        return adafac_net.element_net(self.hidden, 2, self.exp_mult)


class AdafacMLP(ElementRule):
    """See the module docstring."""

    name: ClassVar[str] = "adafac_mlp"
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2203.11860"
    config_class: ClassVar[type] = AdafacMLPConfig
    grad_clip: ClassVar[float] = adafac_net.GRADIENT_BOUND

    def init_theta(self, draw: Draw, key: Any) -> Any:
        return adafac_net.init_theta(draw, key, self.config.hidden, 2)

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        bias = adafac_net.bias(xp, theta, run.updates)
        scale = xp.constant(self.config.step_mult)
        return Advance(shared, scale, common={"bias": bias})

    def numbers(
        self, xp: Ops, theta: Any, scale: Array, told: Arrays, common: Arrays
    ) -> Numbers:
        return adafac_net.numbers(xp, theta, scale, common)

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if not adafac_net.is_published(arrays):
            return arrays
        return adafac_net.from_published(arrays, (0, 1))
