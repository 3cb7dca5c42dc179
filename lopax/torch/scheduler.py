"""Celo's learned scheduler in torch: loss history, time features, one LSTM.

The counterpart of `lopax.blocks.scheduler`, with the same numbers. It runs once a
step, whatever the number of tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lopax._core.run import Run
from lopax.rules.time_features import FRACTION_CENTRES
from lopax.torch import progress
from lopax.torch.recurrent import affine, layer_shapes, lstm
from lopax.torch.rule import constant

Theta = dict[str, Tensor]
State = dict[str, Tensor]


def shapes(
    size: int, inputs: int = progress.NUM_INPUTS, prefix: str = "scheduler/"
) -> dict[str, tuple[int, ...]]:
    """Shapes of the meta-parameters, by path name, for `size` LSTM units."""
    return {
        f"{prefix}initial/hidden": (size,),
        f"{prefix}initial/cell": (size,),
        **layer_shapes(f"{prefix}mix", inputs, size),
        **layer_shapes(f"{prefix}skip", inputs, size),
        **layer_shapes(f"{prefix}lstm", 2 * size, 4 * size),
        **layer_shapes(f"{prefix}head", size, 1),
    }


def constants() -> dict[str, Tensor]:
    """What a scheduler expects in theta beside the meta-parameters."""
    return {"scheduler/centres": constant(FRACTION_CENTRES)}


def init(theta: Theta, num_steps: int) -> State:
    """State before the first step, on theta's device."""
    hidden, cell = (theta[f"scheduler/initial/{k}"] for k in ("hidden", "cell"))
    history = progress.init(num_steps, hidden.device)
    return {**history, "lstm_hidden": hidden.clone(), "lstm_cell": cell.clone()}


def advance(theta: Theta, state: State, run: Run) -> tuple[State, Tensor]:
    """One step: next state and the multiplier 0.1 exp(w h + b) []."""
    history = progress.update(state, run.loss)
    inputs = progress.inputs(theta["scheduler/centres"], history, run.fraction)
    heard = torch.relu(affine(theta, "scheduler/mix", inputs))
    mixed = heard + affine(theta, "scheduler/skip", inputs)
    hidden, cell = lstm(
        theta, "scheduler/lstm", mixed, state["lstm_hidden"], state["lstm_cell"]
    )
    multiplier = 0.1 * torch.exp(affine(theta, "scheduler/head", hidden)[0])
    return {**history, "lstm_hidden": hidden, "lstm_cell": cell}, multiplier


def beyond(state: State, trained: int | None) -> Tensor:
    """min(1, sqrt(trained / horizon)) []: a factor for runs longer than `trained`
    steps, None: 1. See `lopax.blocks.scheduler.beyond`."""
    if trained is None:
        return state["loss_decays"].new_ones(())
    return torch.sqrt((trained / progress.horizon(state)).clamp(max=1.0))
