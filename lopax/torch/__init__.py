"""Learned optimizers for PyTorch: the same weights and numbers as in JAX, without JAX.

import lopax.torch

optimizer = lopax.torch.Celo(model.parameters(), num_steps=2_000)
for batch in batches:
    loss = loss_fn(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(loss=loss)
"""

from __future__ import annotations

from typing import Any, ClassVar

from lopax._core.registry import Registry
from lopax.torch.celo import CeloRule
from lopax.torch.celo_adam import CeloAdamRule
from lopax.torch.errors import (
    BackendUnavailable,
    HorizonNotGiven,
    LossNotGiven,
    UnsupportedParameter,
)
from lopax.torch.optimizer import Info, LearnedOptimizer
from lopax.torch.rule import Rule


class Celo(LearnedOptimizer):
    """Celo; see `LearnedOptimizer` for the arguments and `lopax.torch.celo` for the
    rule. Needs `num_steps`, and the loss at every step."""

    rule_class: ClassVar[type[Rule]] = CeloRule


class CeloAdam(LearnedOptimizer):
    """Celo-Adam; see `LearnedOptimizer` for the arguments and `lopax.torch.celo_adam`
    for the rule. Needs `num_steps`, and the loss at every step."""

    rule_class: ClassVar[type[Rule]] = CeloAdamRule


RULES: Registry[type[LearnedOptimizer]] = Registry("optimizer for PyTorch")
"""Architecture names to optimizer classes; a further rule is one more entry."""
RULES.add("celo", Celo)
RULES.add("celo_adam", CeloAdam)


def optimizer(name: str, params: Any, **options: Any) -> LearnedOptimizer:
    """The optimizer class called `name` (as in `lopax.optimizer`), on `params`.

    Raises `UnknownName` (near matches), and what `LearnedOptimizer` raises.
    """
    return RULES[name](params, **options)


__all__ = [
    "RULES",
    "BackendUnavailable",
    "Celo",
    "CeloAdam",
    "HorizonNotGiven",
    "Info",
    "LearnedOptimizer",
    "LossNotGiven",
    "UnsupportedParameter",
    "optimizer",
]
