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

import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.lifting import Leaf
from lopax._core.types import Count, Key, Theta
from lopax.blocks import adafac_net, moments
from lopax.blocks.counted_rule import CountedRule
from lopax.blocks.element_features import ADAFAC_GROUPS
from lopax.blocks.moments import Moments
from lopax.kernels import elements as kernel
from lopax.kernels.elements import Form, FusedRule, Part


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
    """Whether the network is computed weight by weight (one pass over the elements) or
    as matrix products. None: by its width. Back-propagation through many updates of
    the unrolled form takes minutes to compile."""

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        kernel.check_backend(self)

    @property
    def fits_kernel(self) -> bool:
        """Whether the fused kernel covers these sizes."""
        return self.hidden in kernel.WIDTHS


class AdafacMLP(FusedRule, CountedRule[Moments]):
    """See the module docstring."""

    name: ClassVar[str] = "adafac_mlp"
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2203.11860"
    param_like: ClassVar[tuple[str, ...]] = ("second",)
    grad_clip: ClassVar[float] = adafac_net.GRADIENT_BOUND

    def __init__(self, config: AdafacMLPConfig | None = None):
        self.config = config or AdafacMLPConfig()

    def init_theta(self, key: Key) -> Theta:
        return adafac_net.init_theta(key, self.config.hidden, 2)

    def init_tensor(self, theta: Theta, param: Array) -> Moments:
        del theta
        return moments.init(param)

    def step_scale(self, theta: Theta) -> float:
        del theta
        return self.config.step_mult

    def form(self) -> Form:
        rows = kernel.rows_of(ADAFAC_GROUPS)
        return Form(rows=rows, exp_mult=self.config.exp_mult, vector_eps=1e-6)

    def part(self, theta: Theta, context: Count, leaf: Leaf, param: Array) -> Part:
        del leaf, param
        return Part(*adafac_net.at_step(theta, context), self.config.step_mult)

    def elements(
        self, part: Part, grad: Array, state: Moments, param: Array
    ) -> tuple[Array, Moments]:
        c = self.config
        (direction, magnitude), _, state = adafac_net.elements(
            part.net, part.decays, grad, state, param, c.unrolled
        )
        delta = -direction * jnp.exp(c.exp_mult * magnitude) * part.scale
        return jnp.where(moments.reached(state), delta, 0.0), state

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if not adafac_net.is_published(arrays):
            return arrays
        return adafac_net.from_published(arrays, (0, 1))
