"""VeLO: an LSTM per tensor that mixes that tensor's own MLP from a bank of MLPs.

Metz et al., "VeLO: Training Versatile Learned Optimizers by Scaling Up" (2022, arXiv
2211.09760). Each step, the LSTM of every tensor reads the fraction of training done,
the loss history and the size of the tensor's accumulators, hears the maximum over all
tensors of one mixing layer, and puts out mixing coefficients over the bank and a step
multiplier. The mixed MLP then maps Celo's 30 channels to every element's step.

Needs the loss and the horizon; sees every parameter, of any shape. The defaults are
the released weights' settings (512 LSTM units, a bank of 256): 2,303,233
meta-parameters. The published tree has 2,320,385; the difference (an unused linear
layer and an unused third output) does not act on the result and is neither stored nor
perturbed here. VeLO-S of Celo's comparisons is `lstm=64, bank=32, bank_mult=1.0`.

Difference from the published code: the largest dimensions are found by a stable sort.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax._core.sizes import SizeBounds
from lopax.rules import layers, loss_history, moments, published, scheduler
from lopax.rules.element_net import ARRAYS, SIZE_EPS, ElementNet, Numbers
from lopax.rules.element_rule import ElementRule, check_backend
from lopax.rules.form import Advance, Place, Rows, Steps
from lopax.rules.layers import LSTMState
from lopax.rules.log_features import log_magnitude
from lopax.rules.loss_history import LossHistory
from lopax.rules.moments import PUBLISHED_DECAYS, Moments
from lopax.rules.ops import Array, Arrays, Draw, Ops

NUM_TENSOR_INPUTS = 12
RANKS = 5
NORM_FACTORS = ("rms", "clipped", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VeLOConfig:
    """Settings of `VeLO`; the defaults fit the released weights (velo-4000)."""

    lstm: int = 512
    bank: int = 256
    """Number of MLPs that are mixed."""
    hidden: int = 4
    """Width of each MLP's two hidden layers."""
    bank_mult: float = 100.0
    """Factor on the mixed weights. 1 was needed for stability when meta-training with
    persistent evolution strategies on small tasks."""
    step_mult: float = 1e-3
    exp_mult: float = 1e-3
    norm_factor: str = "rms"
    """How a tensor's size enters its step: "rms", as published, by which a direction
    that keeps its sign grows exponentially; "clipped", that but at most `norm_limit`;
    "none"."""
    norm_limit: float = 1.0
    size_floor: float = 0.0
    """A matrix counts as at least this times 1 / sqrt(fan-in), so that one that starts
    at zero can leave it (`sizes.FLOOR` is a good one). 0, as published: no floor."""
    vector_floor: float = 0.0
    """A vector or scalar counts as at least this large."""
    backend: str = "auto"
    """As Celo's."""
    frozen_lstm: bool = False
    """Never carry the LSTM's state forward. Only for checkpoints from before that bug
    was found; the released ones (names with `bigproblem_v2`) need False."""
    short_loss_history: bool = False
    """Build the loss history for a run of ten steps, whatever the horizon. As above."""

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "bank", low=1)
        check_range(self, "hidden", low=1)
        check_range(self, "bank_mult", above=0.0)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_choice(self, "norm_factor", NORM_FACTORS)
        check_range(self, "norm_limit", above=0.0)
        check_range(self, "size_floor", low=0.0)
        check_range(self, "vector_floor", low=0.0)
        check_backend(self)

    @property
    def bounds(self) -> SizeBounds:
        """Of the size in a step, where it is not bounded by `norm_limit`."""
        return SizeBounds(self.size_floor, self.vector_floor)

    @property
    def element_net(self) -> ElementNet:
        bounds = self.bounds if self.norm_factor == "rms" else None
        return ElementNet(self.hidden, exp_mult=self.exp_mult, bounds=bounds)


class VeLOShared(NamedTuple):
    loss: LossHistory


class VeLORows(NamedTuple):
    lstm: LSTMState


class VeLO(ElementRule):
    """See the module docstring. The LSTM's state is a row of every tensor."""

    name: ClassVar[str] = "velo"
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2211.09760"
    config_class: ClassVar[type] = VeLOConfig
    needs_loss = True
    needs_horizon = True
    summaries_need_gradients: bool = False
    config: VeLOConfig

    @property
    def num_summaries(self) -> int:  # type: ignore[override]
        return NUM_TENSOR_INPUTS + (self.config.norm_factor == "clipped")

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c, net = self.config, self.config.element_net
        k_bank, k_mix, k_skip, k_lstm, k_controls, k_head = draw.split(key, 6)
        inputs = scheduler.NUM_INPUTS + NUM_TENSOR_INPUTS
        sizes = (net.num_channels, c.hidden, c.hidden, net.outputs)
        return {
            "initial": {"hidden": draw.full((c.lstm,)), "cell": draw.full((c.lstm,))},
            "mix": layers.linear(draw, k_mix, inputs, c.lstm),
            "skip": layers.linear(draw, k_skip, inputs, c.lstm),
            "lstm": layers.lstm_init(draw, k_lstm, c.lstm, c.lstm),
            "head": layers.linear(draw, k_head, c.lstm, 1),
            "controls": layers.linear(draw, k_controls, c.lstm, c.bank),
            "bank": draw.several(
                k_bank, c.bank, lambda key: layers.mlp_init(draw, key, sizes)
            ),
        }

    def init_shared(
        self, xp: Ops, theta: Any, num_steps: Array, starts: Array
    ) -> VeLOShared:
        horizon = xp.integer(10) if self.config.short_loss_history else num_steps
        return VeLOShared(loss_history.init(xp, horizon))

    def init_rows(self, xp: Ops, theta: Any, shared: Any, starts: Array) -> VeLORows:
        return VeLORows(layers.tiled(xp, theta["initial"], starts.shape[0]))

    def summarise(
        self,
        xp: Ops,
        theta: Any,
        place: Place,
        grad: Array,
        state: Moments,
        param: Array,
    ) -> Steps:
        """Sizes of the accumulators, from before this gradient, against the
        parameters' own, and the rank; the second moment too is scaled by 1/rms, not
        its square. With a clipped norm factor also that, last."""
        momenta, second, size = state.momenta, state.second, place.size
        square, mean_m, mean_v = yield [
            place.total_square(xp, param),
            place.total(xp, momenta),
            place.total(xp, second),
        ]
        square, mean_m, mean_v = square / size, mean_m / size, mean_v / size
        # One at a time, so that no more than one array is made.
        pairs = [(second, mean_v)]
        pairs += [(place.layer(momenta, k), mean_m[..., k]) for k in range(3)]
        spread_v, *spread_m = yield [
            place.total_square(xp, x - place.column(mean)) for x, mean in pairs
        ]
        # The published variance of the second moment is taken around the mean of each
        # momentum, which makes it three numbers; the released weights were trained so.
        spread_v = (spread_v / size)[..., None] + xp.square(mean_v[..., None] - mean_m)
        scale = xp.rsqrt(xp.maximum(square, 1e-9))[..., None]
        spreads = xp.concat([xp.stack(spread_m, axis=-1) / size, spread_v], axis=-1)
        rank = xp.constant(rank_one_hot(place.shape))
        columns = [
            0.5 * log_magnitude(xp, mean_v[..., None] * scale, 10.0),
            xp.broadcast_to(rank, (*square.shape, RANKS)),
            0.5 * log_magnitude(xp, spreads * xp.square(scale), 10.0),
        ]
        if self.config.norm_factor == "clipped":
            rms = xp.sqrt(xp.minimum(square, 3e38) + SIZE_EPS)
            least, most = self.config.bounds.of(place.shape, place.matrix)
            limited = xp.minimum(xp.clip(rms, least, most), self.config.norm_limit)
            columns.append(limited[..., None])
        return xp.concat(columns, axis=-1)

    def advance(
        self, xp: Ops, theta: Any, shared: VeLOShared, run: Run, rows: Rows
    ) -> Advance:
        c = self.config
        history = loss_history.update(xp, shared.loss, run.loss)
        if not rows.count:  # all tensors are other processes'
            return Advance(VeLOShared(history), xp.zeros(()))
        common = scheduler.inputs(xp, history, run.fraction)
        common = xp.broadcast_to(common, (rows.count, scheduler.NUM_INPUTS))
        inputs = xp.concat([common, rows.summaries[:, :NUM_TENSOR_INPUTS]], axis=1)
        heard = xp.max(xp.relu(layers.affine(xp, theta["mix"], inputs)), axis=0)
        mixed = layers.affine(xp, theta["skip"], inputs) + heard
        out = layers.lstm(xp, theta["lstm"], mixed, rows.carried.lstm)
        controls = layers.affine(xp, theta["controls"], out.hidden)
        multiplier = layers.affine(xp, theta["head"], out.hidden)[:, 0]
        size = c.step_mult * multiplier
        if c.norm_factor == "clipped":
            size = size * rows.summaries[:, -1]
        told = {"size": size}
        for name in ARRAYS:
            bank = theta["bank"][name]
            mixed = xp.matmul(controls, bank.reshape((c.bank, -1)))
            shape = (rows.count, *bank.shape[1:])
            told[name] = (c.bank_mult / c.bank) * mixed.reshape(shape)
        return Advance(
            VeLOShared(history),
            # Multipliers may be negative; their mean size is what resembles a step.
            c.step_mult * xp.sum(xp.abs(multiplier)) / rows.count,
            carried=None if c.frozen_lstm else VeLORows(out),
            told=told,
        )

    def numbers(
        self, xp: Ops, theta: Any, scale: Array, told: Arrays, common: Arrays
    ) -> Numbers:
        network = {name: told[name] for name in ARRAYS}
        return Numbers(network, moments.fixed(xp, PUBLISHED_DECAYS), told["size"])

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        controls = "rnn_params/rnn_to_controls"
        if f"{published.BANK}w1" not in arrays or f"{controls}/w" not in arrays:
            return arrays
        found = published.scheduler(arrays)
        found |= {f"controls/{k}": arrays[f"{controls}/{k}"] for k in ("w", "b")}
        bank = published.mlp(arrays, published.BANK, (0, 1))
        return found | published.under("bank", bank)


def rank_one_hot(shape: tuple[int, ...]) -> tuple[float, ...]:
    """[5] one-hot number of dimensions larger than one; all zeros from five up."""
    dimensions = sum(n > 1 for n in shape)
    return tuple(float(k == dimensions) for k in range(RANKS))
