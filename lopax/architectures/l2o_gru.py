"""A coordinate-wise GRU: the optimizer whose mechanisms were analysed.

Maheswaranathan, Sussillo, Metz, Sun and Sohl-Dickstein, "Reverse engineering learned
optimizers reveals known and novel mechanisms" (2020, arXiv 2011.02159). Every element
runs its own copy of one GRU on its own gradient and starts from one learned state; a
linear readout of the new state is the step: h <- GRU(h, g), x <- x + s (w h + b).

Needs neither the loss nor the horizon, and never looks at the parameters' values. 3,361
meta-parameters at the default 32 units: 3,296 in the cell, 33 in the readout, 32 in
the initial state. State of 4 B times the units per parameter: for small problems. The
readout starts at zero, so a fresh theta does nothing. `lopax.analysis` takes rules of
this kind apart into momentum, clipping, schedule and adaptation.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf
from lopax._core.types import Count, Key, Theta
from lopax.architectures.described import XP
from lopax.architectures.jax_ops import JaxDraw
from lopax.blocks import first_gradient
from lopax.blocks.counted_rule import CountedRule
from lopax.nets import linear
from lopax.rules import layers

INPUTS = ("raw", "log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2OGRUConfig:
    """Settings of `L2OGRU`."""

    units: int = 32
    inputs: str = "raw"
    """"raw": the gradient times `input_mult`. "log": its log1p size and its sign."""
    input_mult: float = 1.0
    step_mult: float = 1.0
    """Step for a readout of one; 1 suits quadratics, 1e-3 networks."""
    detach: bool = False
    """Treat gradients as constants in the meta-gradient."""

    def __post_init__(self) -> None:
        check_range(self, "units", low=1)
        check_choice(self, "inputs", INPUTS)
        check_range(self, "input_mult", above=0.0)
        check_range(self, "step_mult", above=0.0)


class L2OGRU(CountedRule[Array]):
    """See the module docstring. A tensor's state is its hidden units [*shape, units]
    behind the tensor's axes."""

    name: ClassVar[str] = "l2o_gru"
    reference: ClassVar[str] = "Maheswaranathan et al., 2020, arXiv 2011.02159"

    def __init__(self, config: L2OGRUConfig | None = None):
        self.config = config or L2OGRUConfig()

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        inputs = 1 if c.inputs == "raw" else 2
        return {
            "initial": jnp.zeros((c.units,), jnp.float32),
            "gru": layers.gru_init(JaxDraw(), key, inputs, c.units),
            "head": {
                "w": jnp.zeros((c.units, 1), jnp.float32),
                "b": jnp.zeros((1,), jnp.float32),
            },
        }

    def init_tensor(self, theta: Theta, param: Array) -> Array:
        return jnp.broadcast_to(theta["initial"], (*param.shape, self.config.units))

    def step_scale(self, theta: Theta) -> float:
        del theta
        return self.config.step_mult

    def step(
        self,
        theta: Theta,
        context: Count,
        index: Leaf,
        grad: Array,
        state: Array,
        param: Array,
    ) -> tuple[Array, Array]:
        del context, index, param
        if self.config.detach:
            grad = jax.lax.stop_gradient(grad)
        hidden = self.transition(theta, state, grad)
        delta = self.readout(theta, hidden)
        return first_gradient.wait(grad, state, theta["initial"], delta, hidden)

    def transition(
        self, theta: Theta, hidden: Float[Array, "*s h"], grad: Float[Array, "*s"]
    ) -> Any:
        """The next hidden units [*s, h]."""
        return layers.gru(XP, theta["gru"], self._signal(grad), hidden)

    def readout(self, theta: Theta, hidden: Float[Array, "*s h"]) -> Any:
        """The step [*s] for (new) hidden units."""
        return self.config.step_mult * linear.apply(theta["head"], hidden)[..., 0]

    def _signal(self, grad: Array) -> Float[Array, "*s i"]:
        scaled = self.config.input_mult * grad
        if self.config.inputs == "raw":
            return scaled[..., None]
        return jnp.stack([jnp.log1p(jnp.abs(scaled)), jnp.sign(scaled)], axis=-1)
