"""Losses that an optimizer is told of between its steps."""

from __future__ import annotations

from typing import Any

import torch

from lopax.torch import state as states
from lopax.torch.losses import ObservedLosses, as_scalar
from lopax.torch.operands import Operands


class Observing(Operands):
    """The part of a learned optimizer that hears losses."""

    _observed: ObservedLosses

    def observe(self, loss: Any, *, reduce: str = "mean") -> None:
        """Records the loss the next `step()` will use, for loops that call it bare.

        Several losses before one step (gradient accumulation) are averaged, or with
        `reduce="sum"` added, for micro-batch losses already divided by their number.
        Those from before the last `zero_grad()` belong to a step that never came
        (`GradScaler` leaves steps out), and are forgotten.
        """
        self._observed.add(loss, reduce)

    @torch.no_grad()
    def observe_validation(self, loss: Any) -> None:
        """Shows the loss on validation data to rules that take it (RNN-MLP), between
        two steps; the others do not look. One that is not finite changes nothing."""
        if not self._shared:
            self._begin(self._home(loss))
        shared = {k: v for k, v in self._shared.items() if k not in states.COUNTERS}
        home = self._shared["iteration"].device
        value = torch.as_tensor(as_scalar(loss), dtype=torch.float32, device=home)
        seen = self._on(home, False)[0].observe_validation(
            shared, torch.where(value.isfinite(), value, torch.zeros_like(value))
        )
        for name, new in seen.items():
            shared[name].copy_(torch.where(value.isfinite(), new, shared[name]))

    def forget_observed(self) -> None:
        """Drops the losses recorded for a step that will not come."""
        self._observed.take()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._observed.gradients_are_gone()
