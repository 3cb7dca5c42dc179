"""NN-Adam: an LSTM per tensor moves Adam's four hyperparameters.

A rule of the library of Metz et al. (2022, arXiv 2203.11860), used as a baseline in
several papers; it has none of its own.

Needs neither the loss nor the horizon; sees means, variances and signs of each
tensor's gradient, momentum, second moment and parameters, whether it is a scalar or a
vector, and its present hyperparameters: 19 numbers. Each step uses the hyperparameters
the LSTM set on the step before. 21,896 meta-parameters with 64 units (the published
class has 32 and 6,856); all of them act.

Compared with Adam the learning rate is multiplied by 1 + epsilon, so that a large
epsilon, which switches the second moment off, does not also switch the step off. There
is no bias correction.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import form, layers
from lopax.rules.form import EACH, Advance, Keeps, Place, Rows, StepContext, Steps
from lopax.rules.layers import LSTMState
from lopax.rules.log_features import in_name_order, log_magnitude
from lopax.rules.ops import Array, Draw, Ops

HUGE = 1e14
"""Larger parameters count as this in the features, where their squares would overflow;
all features are bounded well below."""
NUM_INPUTS = 19
HYPERS = ("lr", "beta1", "beta2", "epsilon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNAdamConfig:
    """Settings of `NNAdam`; the learning rate and so on are where theta starts."""

    lstm: int = 64
    output_scale: float = 0.01
    """How far an output of one moves a (log-scale) hyperparameter."""
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "output_scale", above=0.0)
        check_range(self, "learning_rate", above=0.0)
        check_range(self, "beta1", low=0.0, below=1.0)
        check_range(self, "beta2", low=0.0, below=1.0)
        check_range(self, "epsilon", above=0.0)


class NNAdamState(NamedTuple):
    momentum: Any  # [*s]
    second: Any  # [*s]
    hypers: Any  # [4] in the order of HYPERS, on the scales of `_decode`


class NNAdam(form.Rule):
    """See the module docstring. The LSTM's state is a row of every tensor."""

    name: ClassVar[str] = "nn_adam"
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2203.11860"
    config_class: ClassVar[type] = NNAdamConfig
    num_summaries = NUM_INPUTS + len(HYPERS)
    config: NNAdamConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        return {
            "initial": {"hidden": draw.full((c.lstm,)), "cell": draw.full((c.lstm,))},
            "lstm": layers.lstm_init(draw, key, NUM_INPUTS, c.lstm),
            # Zero weights: an untrained NN-Adam is Adam without bias correction.
            "head": {"w": draw.full((c.lstm, 4)), "b": draw.full((4,))},
            "hypers": {
                "lr": draw.full((), 0.1 * math.log(c.learning_rate)),
                "beta1": draw.full((), 0.1 * math.log(1.0 - c.beta1)),
                "beta2": draw.full((), 0.1 * math.log(1.0 - c.beta2)),
                "epsilon": draw.full((), 0.1 * math.log(c.epsilon)),
            },
        }

    def keeps(self, role: str) -> NNAdamState:
        return NNAdamState(EACH, EACH, Keeps(copies=len(HYPERS), each=False))

    def starts(self, xp: Ops, theta: Any) -> dict[str, Array]:
        return {"hypers": xp.stack([theta["hypers"][name] for name in HYPERS])}

    def init_rows(self, xp: Ops, theta: Any, shared: Any, starts: Array) -> LSTMState:
        return layers.tiled(xp, theta["initial"], starts.shape[0])

    def summarise(
        self,
        xp: Ops,
        theta: Any,
        place: Place,
        grad: Array,
        state: NNAdamState,
        param: Array,
    ) -> Steps:
        """The LSTM's 19 inputs, then the four hyperparameters for the report."""
        momentum, second = _accumulate(xp, place, state, grad)
        param = xp.clip(param, -HUGE, HUGE)
        arrays = {"g": grad, "m": momentum, "p": param, "rms": second}
        sums = yield [place.total(xp, x) for x in (*arrays.values(), xp.abs(grad))]
        means = [x / place.size for x in sums]
        spreads = yield [
            place.total_square(xp, x - place.column(m))
            for x, m in zip(arrays.values(), means, strict=False)
        ]
        zero = 0.0 * means[0]
        inputs = {
            "is_scalar": zero + (1.0 if place.scalar else -1.0),
            "is_bias": zero + (1.0 if len(place.sizes) == 1 else -1.0),
            "mean_gabs_mag": 0.5 * log_magnitude(xp, means[4]),
        }
        for name, m, spread in zip(arrays, means, spreads, strict=False):
            size = "" if name == "rms" else "_mag"
            inputs[f"mean_{name}{size}"] = 0.5 * log_magnitude(xp, m)
            sign = "mean_sign" if name == "rms" else f"mean_{name}_sign"
            inputs[sign] = xp.sign(m)
            inputs[f"var_{name}"] = 0.5 * log_magnitude(xp, spread / place.size)
        for k, name in enumerate(HYPERS):
            inputs[name] = 0.2 * xp.clip(state.hypers[..., k], -5.0, 5.0)
        ordered = in_name_order(inputs)
        return xp.stack([*ordered, *_decode(xp, state.hypers)], axis=-1)

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        inputs = rows.summaries[:, :NUM_INPUTS]
        out = layers.lstm(xp, theta["lstm"], inputs, rows.carried)
        deltas = self.config.output_scale * layers.affine(xp, theta["head"], out.hidden)
        mean_rate = xp.sum(rows.summaries[:, NUM_INPUTS]) / max(rows.count, 1)
        return Advance(shared, mean_rate, carried=out, told={"deltas": deltas})

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: NNAdamState,
        param: Array,
    ) -> Steps:
        yield from form.no_sums()
        rate, _, _, epsilon = (at.place.column(x) for x in _decode(xp, state.hypers))
        momentum, second = _accumulate(xp, at.place, state, grad)
        gain = rate * (1.0 + epsilon)
        delta = -gain * momentum / (epsilon + xp.sqrt(second + 1e-10))
        hypers = state.hypers + at.told["deltas"]
        return delta, NNAdamState(momentum, second, hypers)

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if "rnn_to_controls_params/rnn_to_controls/w" not in arrays:
            return arrays
        names = {f"hypers/{h}": f"per_layer_{h}" for h in HYPERS}
        for leaf in ("w", "b"):
            names[f"lstm/{leaf}"] = f"rnn_params/rnn/linear/{leaf}"
            names[f"head/{leaf}"] = f"rnn_to_controls_params/rnn_to_controls/{leaf}"
        found = {ours: arrays[theirs] for ours, theirs in names.items()}
        for k in ("hidden", "cell"):
            found[f"initial/{k}"] = arrays[f"lstm_init_state/{k}"].reshape(-1)
        return found


def _decode(xp: Ops, hypers: Array) -> list[Array]:
    """lr, beta1, beta2, epsilon [*lead] from ten times smaller logarithms [*lead, 4],
    within bounds."""
    lr, beta1, beta2, epsilon = (10.0 * hypers[..., k] for k in range(4))
    return [
        xp.exp(xp.clip(lr, math.log(1e-8), math.log(1e3))),
        1.0 - xp.exp(xp.clip(beta1, -10.0, 0.0)),
        1.0 - xp.exp(xp.clip(beta2, -10.0, 0.0)),
        xp.exp(xp.clip(epsilon, math.log(1e-11), math.log(1e4))),
    ]


def _accumulate(
    xp: Ops, place: Place, state: NNAdamState, grad: Array
) -> tuple[Array, Array]:
    """Momentum and second moment after this gradient, with the tensor's own decays."""
    _, beta1, beta2, _ = (place.column(x) for x in _decode(xp, state.hypers))
    momentum = xp.ema(state.momentum, grad, beta1)
    second = xp.ema(state.second, xp.square(grad), beta2)
    return momentum, second
