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

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax.rules import form, layers
from lopax.rules.form import Advance, Keeps, Rows, StepContext, Steps
from lopax.rules.layers import Units
from lopax.rules.ops import Array, Draw, Ops

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


class L2OGRU(form.Rule):
    """See the module docstring."""

    name: ClassVar[str] = "l2o_gru"
    reference: ClassVar[str] = "Maheswaranathan et al., 2020, arXiv 2011.02159"
    sees_tensors: ClassVar[bool] = False
    config_class: ClassVar[type] = L2OGRUConfig
    config: L2OGRUConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        inputs = 1 if c.inputs == "raw" else 2
        return {
            "initial": draw.full((c.units,)),
            "gru": layers.gru_init(draw, key, inputs, c.units),
            "head": {"w": draw.full((c.units, 1)), "b": draw.full((1,))},
        }

    def keeps(self, role: str) -> Units:
        return Units(Keeps(units=self.config.units))

    def starts(self, xp: Ops, theta: Any) -> dict[str, Array]:
        return {"units": theta["initial"]}

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        return Advance(shared, xp.constant(self.config.step_mult))

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Units,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        seen = xp.stop_gradient(grad) if self.config.detach else grad
        units = self.transition(xp, theta, state.units, seen)
        unmoved = xp.all(state.units == theta["initial"], axis=-1)
        waiting = layers.waiting(grad, (unmoved,))
        delta = xp.where(waiting, 0.0, self.readout(xp, theta, units))
        return delta, Units(xp.where(waiting[..., None], state.units, units))

    def transition(self, xp: Ops, theta: Any, units: Array, grad: Array) -> Array:
        """The next hidden units [*n, h] for gradients [*n]."""
        return layers.gru(xp, theta["gru"], self.signal(xp, grad), units)

    def signal(self, xp: Ops, grad: Array) -> Array:
        """What the GRU sees [*n, i] of gradients [*n]."""
        scaled = self.config.input_mult * grad
        if self.config.inputs == "raw":
            return scaled[..., None]
        return xp.stack([xp.log1p(xp.abs(scaled)), xp.sign(scaled)], axis=-1)

    def readout(self, xp: Ops, theta: Any, units: Array) -> Array:
        """The step [*n] for (new) hidden units."""
        return self.config.step_mult * layers.affine(xp, theta["head"], units)[..., 0]
