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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf
from lopax._core.run import Run
from lopax._core.sizes import SizeBounds
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.architectures.described import XP
from lopax.blocks import loss_history, moments, scheduler, time_features
from lopax.blocks import tensor_features as tensors
from lopax.blocks.element_rule import ElementRule, check_backend
from lopax.blocks.loss_history import LossHistory
from lopax.blocks.moments import PUBLISHED_DECAYS, Moments
from lopax.blocks.normalize import safe_rsqrt, tensor_size
from lopax.nets import initializers, linear, lstm, mlp
from lopax.nets.lstm import LSTMState
from lopax.rules import channels
from lopax.rules.element_net import ElementNet, Numbers
from lopax.rules.log_features import log_magnitude

NUM_SHARED_INPUTS = time_features.NUM_FRACTION + loss_history.NUM_FEATURES
NUM_TENSOR_INPUTS = 12
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
    history: LossHistory
    lstm: LSTMState  # one row a tensor


class VeLOContext(NamedTuple):
    nets: Theta  # the mixed MLPs, {"w0": [tensors, 30, hidden], ...}
    multiplier: Float[Array, "tensors"]


class VeLO(ElementRule):
    """See the module docstring."""

    name: ClassVar[str] = "velo"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    reference: ClassVar[str] = "Metz et al., 2022, arXiv 2211.09760"
    param_like: ClassVar[tuple[str, ...]] = ("second",)

    def __init__(self, config: VeLOConfig | None = None):
        self.config = config or VeLOConfig()

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        k_bank, k_mix, k_skip, k_lstm, k_controls, k_head = jax.random.split(key, 6)
        inputs = NUM_SHARED_INPUTS + NUM_TENSOR_INPUTS
        sizes = (channels.count(channels.VELO), c.hidden, c.hidden, 2)
        return {
            "initial": {
                "hidden": jnp.zeros((c.lstm,), jnp.float32),
                "cell": jnp.zeros((c.lstm,), jnp.float32),
            },
            "mix": initializers.linear(k_mix, inputs, c.lstm),
            "skip": initializers.linear(k_skip, inputs, c.lstm),
            "lstm": lstm.init(k_lstm, c.lstm, c.lstm),
            "controls": initializers.linear(k_controls, c.lstm, c.bank),
            "head": initializers.linear(k_head, c.lstm, 1),
            "bank": jax.vmap(lambda k: mlp.init(k, sizes))(
                jax.random.split(k_bank, c.bank)
            ),
        }

    def init_shared(
        self, theta: Theta, num_steps: Count, num_tensors: int
    ) -> VeLOShared:
        horizon = jnp.asarray(10) if self.config.short_loss_history else num_steps
        start = lstm.tile(theta["initial"], num_tensors)
        return VeLOShared(loss_history.init(horizon), start)

    def init_tensor(self, theta: Theta, param: Array) -> Moments:
        del theta
        return moments.init(param)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: Moments, param: Array
    ) -> Float[Array, "12"]:
        """Sizes of the accumulators, from before this gradient, against the
        parameters' own; the second moment too is scaled by 1/rms, not its square."""
        del theta, grad
        # Scaled as numbers: scaled arrays would be written out and read again.
        scale = safe_rsqrt(tensors.mean(jnp.square(param)))
        second = state.second
        averages = tensors.means(state.momenta)
        around = averages.reshape((-1,) + (1,) * param.ndim)
        spread_m = tensors.means(jnp.square(state.momenta - around))
        # The published variance of the second moment is taken around the mean of each
        # momentum, which makes it three numbers; the released weights were trained so.
        spread_v = jnp.stack(
            [tensors.mean(jnp.square(second - average)) for average in averages]
        )

        def log(values: Array) -> Array:
            return 0.5 * log_magnitude(XP, values, 10.0)

        mean = log(tensors.mean(second)[None] * scale)
        rank = tensors.rank_one_hot(leaf.shape)
        spreads = jnp.concatenate([spread_m, spread_v]) * jnp.square(scale)
        return jnp.concatenate([mean, rank, log(spreads)])

    def advance(
        self,
        theta: Theta,
        shared: VeLOShared,
        run: Run,
        summaries: Float[Array, "tensors 12"],
    ) -> tuple[VeLOShared, VeLOContext, Scalar]:
        c = self.config
        history = loss_history.update(shared.history, run.loss)
        common = jnp.concatenate(
            [time_features.fraction_done(run.fraction), loss_history.features(history)]
        )
        rows = (summaries.shape[0], NUM_SHARED_INPUTS)
        inputs = jnp.concatenate([jnp.broadcast_to(common, rows), summaries], axis=1)
        heard = jax.nn.relu(linear.apply(theta["mix"], inputs))
        mixed = linear.apply(theta["skip"], inputs) + jnp.max(heard, axis=0)
        out = lstm.apply(theta["lstm"], mixed, shared.lstm)
        controls = linear.apply(theta["controls"], out.hidden)
        multiplier = linear.apply(theta["head"], out.hidden)[:, 0]

        def mix(weights: Array) -> Array:
            flat = weights.reshape(c.bank, -1)
            summed = jnp.dot(controls, flat, precision="highest")
            return (c.bank_mult / c.bank) * summed.reshape(-1, *weights.shape[1:])

        nets = jax.tree.map(mix, theta["bank"])
        carried = shared.lstm if c.frozen_lstm else out
        # Multipliers may be negative; their mean size is what resembles a step.
        scale = c.step_mult * jnp.mean(jnp.abs(multiplier))
        return VeLOShared(history, carried), VeLOContext(nets, multiplier), scale

    def numbers(
        self, theta: Theta, context: VeLOContext, leaf: Leaf, param: Array
    ) -> Numbers:
        del theta
        c = self.config
        net = jax.tree.map(lambda w: w[int(leaf)], context.nets)
        scale = context.multiplier[int(leaf)] * c.step_mult
        if c.norm_factor == "clipped":
            scale = scale * jnp.minimum(tensor_size(param, c.bounds), c.norm_limit)
        return Numbers(net, PUBLISHED_DECAYS, scale)

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        controls = "rnn_params/rnn_to_controls"
        if "ff_mod_stack/~/w1" not in arrays or f"{controls}/w" not in arrays:
            return arrays
        found = scheduler.from_published(arrays)
        found |= {f"controls/{k}": arrays[f"{controls}/{k}"] for k in ("w", "b")}
        bank = mlp.from_published(arrays, "ff_mod_stack/~/", len(channels.VELO), (0, 1))
        return found | {f"bank/{k}": v for k, v in bank.items()}
