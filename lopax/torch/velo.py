"""VeLO in torch: an LSTM per tensor that mixes that tensor's own MLP from a bank.

Metz et al. (2022, arXiv 2211.09760). The counterpart of `lopax.architectures.velo`,
with the same weights and the same numbers. The LSTMs of all tensors advance together,
as rows of one matrix; each hears the maximum over the tensors that have a gradient in
this step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax._core.sizes import SizeBounds
from lopax.rules.element_net import ARRAYS, SIZE_EPS, ElementNet, Numbers
from lopax.torch import elements, moments, progress, scheduler
from lopax.torch.elements import ElementRule
from lopax.torch.geometry import Accumulator
from lopax.torch.recurrent import affine, layer_shapes, lstm, product
from lopax.torch.rule import Advance, Rows, Steps, Sum, TensorBatch
from lopax.torch.theta import published_mlp, published_scheduler

NUM_TENSOR_INPUTS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class VeLOConfig:
    """Settings of `Velo`, as in `lopax.architectures.velo.VeLOConfig`."""

    lstm: int = 512
    bank: int = 256
    hidden: int = 4
    bank_mult: float = 100.0
    step_mult: float = 1e-3
    exp_mult: float = 1e-3
    norm_factor: str = "rms"
    """Of every step: "rms", the tensor's root mean square; "clipped", that but at most
    `norm_limit`; "none"."""
    norm_limit: float = 1.0
    size_floor: float = 0.0
    vector_floor: float = 0.0
    frozen_lstm: bool = False
    short_loss_history: bool = False

    def __post_init__(self) -> None:
        for name in ("lstm", "bank", "hidden"):
            check_range(self, name, low=1)
        check_range(self, "bank_mult", above=0.0)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_choice(self, "norm_factor", ("rms", "clipped", "none"))
        check_range(self, "norm_limit", above=0.0)
        check_range(self, "size_floor", low=0.0)
        check_range(self, "vector_floor", low=0.0)

    @property
    def bounds(self) -> SizeBounds:
        return SizeBounds(self.size_floor, self.vector_floor)

    @property
    def element_net(self) -> ElementNet:
        bounds = self.bounds if self.norm_factor == "rms" else None
        return ElementNet(self.hidden, exp_mult=self.exp_mult, bounds=bounds)


class VeLORule(ElementRule):
    """See the module docstring."""

    name: ClassVar[str] = "velo"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    config_class: ClassVar[type] = VeLOConfig
    carried: ClassVar[tuple[str, ...]] = ("lstm_hidden", "lstm_cell")

    @classmethod
    def theta_shapes(cls, config: VeLOConfig) -> dict[str, tuple[int, ...]]:
        bank = elements.under("bank", config.element_net)
        inputs = progress.NUM_INPUTS + NUM_TENSOR_INPUTS
        return {
            **scheduler.shapes(config.lstm, inputs, prefix=""),
            **layer_shapes("controls", config.lstm, config.bank),
            **{k: (config.bank, *shape) for k, shape in bank.items()},
        }

    @classmethod
    def constants(
        cls, config: VeLOConfig, theta: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        del config, theta
        decays = moments.fixed(moments.THREE, 0.999, moments.THREE)
        return decays | scheduler.constants()

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        del config
        controls = "rnn_params/rnn_to_controls"
        if f"{controls}/w" not in arrays:
            return arrays
        bank = published_mlp(arrays, "ff_mod_stack/~/", (0, 1))
        return {
            **published_scheduler(arrays),
            **{f"controls/{k}": arrays[f"{controls}/{k}"] for k in ("w", "b")},
            **{f"bank/{k}": v for k, v in bank.items()},
        }

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        del starts
        horizon = 10 if self.config.short_loss_history else num_steps
        return progress.init(horizon, self.theta["mix/b"].device)

    def accumulators(self, rank: int, axes: Any, role: str) -> dict[str, Accumulator]:
        size = self.config.lstm
        return {
            **super().accumulators(rank, axes, role),
            "lstm_hidden": Accumulator(size, (), self.theta["initial/hidden"]),
            "lstm_cell": Accumulator(size, (), self.theta["initial/cell"]),
        }

    summarises: ClassVar[bool] = True

    def summarise(self, batch: TensorBatch, shared: Mapping[str, Tensor]) -> Steps:
        """[B, 12]: sizes of the accumulators against the parameters' own, and the
        rank; the second moment too is scaled by 1/rms, not its square. [B, 13] with a
        clipped norm factor: that, last."""
        del shared
        params, state, shape = batch.params, batch.state, batch.shape
        every, count = tuple(range(len(shape))), math.prod(shape)
        m, v = state["momenta"].flatten(2), state["second"].flatten(1)
        p_sum, v_sum, m_sum = yield [
            Sum(_squares(params.flatten(1)), every),
            Sum(v.sum(1), every),
            Sum(m.sum(2), every),
        ]
        scale = moments.safe_rsqrt(p_sum / count).unsqueeze(1)
        mean_m, mean_v = m_sum / count, (v_sum / count).unsqueeze(1)
        around_m = [_squares(m[:, k] - mean_m[:, k : k + 1]) for k in range(3)]
        spread_m, spread_v = yield [
            Sum(torch.stack(around_m, 1), every),
            Sum(_squares(v - mean_v).unsqueeze(1), every),
        ]
        # The published variance of the second moment is taken around the mean of each
        # momentum, which makes it three numbers; the released weights were trained so.
        variance_m = spread_m / count
        variance_v = spread_v / count + (mean_v - mean_m).square()
        rank = params.new_zeros(5)
        dimensions = sum(n > 1 for n in shape)
        rank[dimensions : dimensions + 1] = 1.0
        columns = [
            _log_magnitude(mean_v * scale),
            rank.expand(len(params), -1),
            _log_magnitude(variance_m * scale * scale),
            _log_magnitude(variance_v * scale * scale),
        ]
        if self.config.norm_factor == "clipped":
            rms = (p_sum / count + SIZE_EPS).sqrt()
            least, _ = self.config.bounds.of(shape, batch.matrix)
            size = rms.clamp(min=least).clamp(max=self.config.norm_limit)
            columns.append(size.unsqueeze(1))
        return torch.cat(columns, 1)

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        c, theta = self.config, self.theta
        history = progress.update(shared, run.loss)
        if rows.summaries is None:  # all tensors are other processes'
            return Advance(history, torch.zeros_like(run.loss))
        common = progress.inputs(theta["scheduler/centres"], history, run.fraction)
        summaries = rows.summaries[:, :NUM_TENSOR_INPUTS]
        inputs = torch.cat([common.expand(rows.count, -1), summaries], 1)
        heard = torch.relu(affine(theta, "mix", inputs)).amax(0)
        mixed = affine(theta, "skip", inputs) + heard
        old = rows.carried
        hidden, cell = lstm(theta, "lstm", mixed, old["lstm_hidden"], old["lstm_cell"])
        controls = affine(theta, "controls", hidden)
        multiplier = affine(theta, "head", hidden)[:, 0]
        sizes = rows.summaries[:, -1] if c.norm_factor == "clipped" else 1.0
        nets = {"multiplier": c.step_mult * multiplier * sizes}
        for name in ARRAYS:
            bank = theta[f"bank/{name}"]
            summed = product(controls, bank.flatten(1)).unflatten(1, bank.shape[1:])
            nets[name] = (c.bank_mult / c.bank) * summed
        return Advance(
            shared=history,
            # Multipliers may be negative; their mean size is what resembles a step.
            scale=c.step_mult * multiplier.abs().mean(),
            carried={} if c.frozen_lstm else {"lstm_hidden": hidden, "lstm_cell": cell},
            context=nets,
        )

    def numbers(self, context: Mapping[str, Tensor], scale: Tensor) -> Numbers:
        del scale
        network = {name: context[name] for name in ARRAYS}
        return Numbers(network, moments.decays(self.theta), context["multiplier"])


def _squares(x: Tensor) -> Tensor:
    """[B] sums of squares of [B, n]."""
    return torch.linalg.vector_norm(x, dim=1).square()


def _log_magnitude(x: Tensor) -> Tensor:
    return 0.5 * torch.log(1e-8 + (10.0 * x).abs()).clamp(-5.0, 5.0)
