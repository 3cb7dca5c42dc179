"""Adafac-MLP in torch: a small per-element MLP on momenta and factored moments.

Metz, Freeman, Harrison, Maheswaranathan and Sohl-Dickstein (2022, arXiv 2203.11860),
where it is called small_fc_lopt. The counterpart of `lopax.architectures.adafac_mlp`,
with the same numbers. Needs neither the loss nor the horizon.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lopax._core.config import check_range
from lopax._core.run import Run
from lopax.rules import channels
from lopax.rules.element_net import ElementNet, Epsilons, Numbers
from lopax.rules.time_features import TIME_SCALES
from lopax.torch import elements, moments
from lopax.torch.elements import ElementRule
from lopax.torch.rule import Advance, Rows, constant
from lopax.torch.theta import published_mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafacMLPConfig:
    """Settings of `AdafacMLP`, as in `lopax.architectures.adafac_mlp`."""

    hidden: int = 4
    step_mult: float = 1e-3
    exp_mult: float = 1e-3

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)

    @property
    def element_net(self) -> ElementNet:
        return ElementNet(
            self.hidden,
            exp_mult=self.exp_mult,
            channels=channels.ADAFAC,
            epsilons=Epsilons(vector=1e-6),
        )


class AdafacMLPRule(ElementRule):
    """See the module docstring."""

    name: ClassVar[str] = "adafac_mlp"
    needs_loss: ClassVar[bool] = False
    needs_horizon: ClassVar[bool] = False
    config_class: ClassVar[type] = AdafacMLPConfig
    grad_clip: ClassVar[float] = 1e9  # clips nothing, but keeps squares finite

    @classmethod
    def theta_shapes(cls, config: AdafacMLPConfig) -> dict[str, tuple[int, ...]]:
        net = config.element_net
        return {
            "decays/momenta": (3,),
            "decays/second": (1,),
            "decays/factored": (3,),
            **elements.under("net", net, net.num_channels + len(TIME_SCALES)),
        }

    @classmethod
    def constants(
        cls, config: AdafacMLPConfig, theta: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        del config
        return {**moments.learned(theta), "time_scales": constant(TIME_SCALES)}

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        del config
        if "nn/~/w0" not in arrays:
            return arrays
        net = published_mlp(arrays, "nn/~/", (0, 1))
        return {
            "decays/momenta": arrays["momentum_decays"],
            "decays/second": arrays["rms_decays"],
            "decays/factored": arrays["adafactor_decays"],
            **{f"net/{k}": v for k, v in net.items()},
        }

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        del num_steps, starts
        device = self.theta["net/b0"].device
        return {"updates": torch.zeros((), dtype=torch.int32, device=device)}

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        """What the network makes of the step number is a part of its first bias."""
        updates, theta = shared["updates"], self.theta
        times = torch.tanh(updates.float() / theta["time_scales"] - 1.0)
        late = theta["net/w0"][self.config.element_net.num_channels :]
        bias = theta["net/b0"] + (times.unsqueeze(1) * late).sum(0)
        return Advance(
            shared={"updates": updates + 1},
            scale=torch.full_like(run.loss, self.config.step_mult),
            context={"b0": bias.expand(rows.count, -1)},
        )

    def numbers(self, context: Mapping[str, Tensor], scale: Tensor) -> Numbers:
        network = elements.network(self.theta, "net") | {"b0": context["b0"]}
        return Numbers(network, moments.decays(self.theta), scale.reshape(1))
