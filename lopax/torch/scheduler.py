"""Celo's learned scheduler in torch: loss history, time features, one LSTM.

The counterpart of `lopax.blocks.scheduler` and the blocks it stands on, with the same
numbers. It runs once a step, whatever the number of tensors. Products are written as
multiply-and-sum, so that neither TF32 nor autocast can reach them.
"""

from __future__ import annotations

import torch
from torch import Tensor

Theta = dict[str, Tensor]
State = dict[str, Tensor]

NUM_DECAYS = 10
CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_INPUTS = len(CENTRES) + NUM_DECAYS - 1
_HUGE = 999999999999.0


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the meta-parameters, by path name, for `size` LSTM units."""
    return {
        "scheduler/initial/hidden": (size,),
        "scheduler/initial/cell": (size,),
        "scheduler/mix/w": (NUM_INPUTS, size),
        "scheduler/mix/b": (size,),
        "scheduler/skip/w": (NUM_INPUTS, size),
        "scheduler/skip/b": (size,),
        "scheduler/lstm/w": (2 * size, 4 * size),
        "scheduler/lstm/b": (4 * size,),
        "scheduler/head/w": (size, 1),
        "scheduler/head/b": (1,),
    }


def constants() -> dict[str, Tensor]:
    """What `advance` expects in theta beside the meta-parameters."""
    return {"scheduler/centres": torch.tensor(CENTRES)}


def init(theta: Theta, num_steps: int) -> State:
    """State before the first step, on theta's device."""
    hidden = theta["scheduler/initial/hidden"]
    device = hidden.device
    top = torch.log10(torch.tensor(float(max(num_steps, 1))))
    constants = 10.0 ** torch.linspace(1.0, float(top), NUM_DECAYS)
    return {
        "loss_means": torch.zeros(NUM_DECAYS, device=device),
        "loss_minima": torch.full((NUM_DECAYS,), _HUGE, device=device),
        "loss_decays": torch.exp(-1.0 / constants).to(device),
        "loss_count": torch.zeros((), dtype=torch.int32, device=device),
        "lstm_hidden": hidden.clone(),
        "lstm_cell": theta["scheduler/initial/cell"].clone(),
    }


def advance(
    theta: Theta, state: State, loss: Tensor, fraction: Tensor
) -> tuple[State, Tensor]:
    """One step: next state and the multiplier 0.1 exp(w h + b) [].

    **Arguments:**

    - `loss`: [] float32, finite, the training loss of this step.
    - `fraction`: [] float32, iteration / horizon, counted before this step.
    """
    history = _update_history(state, loss)
    time = torch.tanh(10.0 * (fraction - theta["scheduler/centres"]))
    inputs = torch.cat([time, _features(history)])
    mixed = torch.relu(_affine(theta, "mix", inputs)) + _affine(theta, "skip", inputs)
    hidden, cell = _lstm(theta, mixed, state["lstm_hidden"], state["lstm_cell"])
    multiplier = 0.1 * torch.exp(_affine(theta, "head", hidden)[0])
    return {**history, "lstm_hidden": hidden, "lstm_cell": cell}, multiplier


def _affine(theta: Theta, layer: str, x: Tensor) -> Tensor:
    w, b = theta[f"scheduler/{layer}/w"], theta[f"scheduler/{layer}/b"]
    return (x.unsqueeze(1) * w).sum(0) + b


def _lstm(
    theta: Theta, x: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """Gates in the order i, g, f, o; the forget bias of +1 belongs to the formula."""
    gates = _affine(theta, "lstm", torch.cat([x, hidden]))
    i, g, f, o = gates.chunk(4)
    cell = torch.sigmoid(f + 1.0) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _update_history(state: State, loss: Tensor) -> State:
    """The history after one more loss; see `lopax.blocks.loss_history.update`."""
    means, d, count = state["loss_means"], state["loss_decays"], state["loss_count"]
    after = 1.0 - torch.pow(d, (count + 1).float())
    # As published: the old averages are corrected as if the new loss were in them.
    largest = (means / after).max()
    bound = 2.0 * torch.where(count == 0, loss, largest).abs()
    means = d * means + (1.0 - d) * torch.minimum(bound, loss)
    return {
        "loss_means": means,
        "loss_minima": torch.minimum(state["loss_minima"], means / after),
        "loss_decays": d,
        "loss_count": count + 1,
    }


def _features(history: State) -> Tensor:
    """[9] in [-1, 1]; zero for the first two losses."""
    d, count = history["loss_decays"], history["loss_count"]
    corrected = history["loss_means"] / (1.0 - torch.pow(d, count.float()))
    minima = history["loss_minima"][:-1]
    span = (corrected[1:] - minima).clamp_min(1e-8)
    raw = ((corrected[:-1] - minima) / span - 1.0).clamp(-1.0, 1.0)
    return torch.where(count <= 2, torch.zeros_like(raw), raw)
