"""The coordinate-wise LSTM of learning to learn, the classic of the field.

Andrychowicz et al., "Learning to learn by gradient descent by gradient descent" (2016,
arXiv 1606.04474). Every element of every tensor runs its own copy of one small LSTM
stack on its own gradient, log-scaled; the output is the step.

Needs neither the loss nor the horizon, and never looks at the parameters' values.
5,141 meta-parameters: two LSTM layers of 20 units (1,840 and 3,280) and a linear output
(21). State of 80 floats per parameter: for small problems. Meta-trained by
back-propagation through the run, so gradients arrive detached, as in the paper.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import form, layers
from lopax.rules.form import Advance, Keeps, Rows, StepContext, Steps
from lopax.rules.layers import LSTMState
from lopax.rules.log_features import log_and_sign
from lopax.rules.ops import Array, Draw, Ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2OLSTMConfig:
    """Settings of `L2OLSTM`; the defaults are the paper's."""

    lstm: int = 20
    layers: int = 2
    log_range: float = 10.0
    """Gradients above exp(-log_range) enter by logarithm and sign, smaller ones
    linearly."""
    step_mult: float = 0.1
    """Step for an output of one."""

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "layers", low=1)
        check_range(self, "log_range", above=0.0)
        check_range(self, "step_mult", above=0.0)


class L2OLSTM(form.Rule):
    """See the module docstring. Behind each of a tensor's elements are the units of
    all layers, in order."""

    name: ClassVar[str] = "l2o_lstm"
    reference: ClassVar[str] = "Andrychowicz et al., 2016, arXiv 1606.04474"
    sees_tensors: ClassVar[bool] = False
    config_class: ClassVar[type] = L2OLSTMConfig
    config: L2OLSTMConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        k_head, *k_layers = draw.split(key, 1 + c.layers)
        inputs = [2] + [c.lstm] * (c.layers - 1)
        found = {
            f"lstm{i}": layers.lstm_init(draw, k, n, c.lstm)
            for i, (k, n) in enumerate(zip(k_layers, inputs, strict=True))
        }
        return {**found, "head": layers.linear(draw, k_head, c.lstm, 1)}

    def keeps(self, role: str) -> LSTMState:
        units = Keeps(units=self.config.layers * self.config.lstm)
        return LSTMState(units, units)

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
        state: LSTMState,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        # The paper drops the optimizee's second derivatives from the meta-gradient.
        new = self.transition(xp, theta, state, xp.stop_gradient(grad))
        waiting = layers.waiting(grad, (xp.all(x == 0.0, axis=-1) for x in state))
        delta = xp.where(waiting, 0.0, self.readout(xp, theta, new))
        behind = waiting[..., None]
        kept = [xp.where(behind, a, b) for a, b in zip(state, new, strict=True)]
        return delta, LSTMState(*kept)

    def transition(
        self, xp: Ops, theta: Any, state: LSTMState, grad: Array
    ) -> LSTMState:
        """The next units [*n, layers x h] for gradients [*n]."""
        c, found = self.config, []
        signal = log_and_sign(xp, grad, c.log_range)
        parts = (layers.split(x, c.layers) for x in state)
        for i, (hidden, cell) in enumerate(zip(*parts, strict=True)):
            old = LSTMState(hidden, cell)
            found.append(layers.lstm(xp, theta[f"lstm{i}"], signal, old))
            signal = found[-1].hidden
        return LSTMState(*(xp.concat(x, axis=-1) for x in zip(*found, strict=True)))

    def readout(self, xp: Ops, theta: Any, state: LSTMState) -> Array:
        """The step [*n] for (new) units."""
        last = layers.split(state.hidden, self.config.layers)[-1]
        return self.config.step_mult * layers.affine(xp, theta["head"], last)[..., 0]
