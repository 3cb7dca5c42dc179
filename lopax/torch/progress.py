"""What a scheduler reads of the run: the loss history and the fraction done.

The counterpart of `lopax.blocks.loss_history` and `lopax.blocks.time_features`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lopax.rules.time_features import FRACTION_CENTRES

State = dict[str, Tensor]

NUM_DECAYS = 10
NUM_INPUTS = len(FRACTION_CENTRES) + NUM_DECAYS - 1
_HUGE = 999999999999.0
_FAST, _SLOWEST = 1.0 - 2.0**-20, 1.0 - 2.0**-24


def horizon_decays(num_steps: int) -> Tensor:
    """[10] exp(-1 / h) for time constants h log-spaced from 10 to the horizon, on the
    CPU."""
    like: Any = {"dtype": torch.float32, "device": "cpu"}
    top = torch.log10(torch.tensor(float(max(num_steps, 1)), **like))
    constants = 10.0 ** torch.linspace(1.0, float(top), NUM_DECAYS, **like)
    return torch.exp(-1.0 / constants).clamp(max=_SLOWEST)


def init(num_steps: int, device: Any) -> State:
    """The empty history of a run of `num_steps`."""
    like: Any = {"dtype": torch.float32, "device": device}
    return {
        "loss_means": torch.zeros(NUM_DECAYS, **like),
        "loss_minima": torch.full((NUM_DECAYS,), _HUGE, **like),
        "loss_decays": horizon_decays(num_steps).to(device),
        "loss_count": torch.zeros((), dtype=torch.int32, device=device),
    }


def update(history: State, loss: Tensor) -> State:
    """The history after one more finite loss []; other entries are left out."""
    means, d = history["loss_means"], history["loss_decays"]
    count = history["loss_count"]
    after = _correction(d, count + 1)
    # As published: the old averages are corrected as if the new loss were in them.
    largest = (means / after).max()
    bound = 2.0 * torch.where(count == 0, loss, largest).abs()
    means = d * means + (1.0 - d) * torch.minimum(bound, loss)
    return {
        "loss_means": means,
        "loss_minima": torch.minimum(history["loss_minima"], means / after),
        "loss_decays": d,
        "loss_count": count + 1,
    }


def retime(history: State, old: int, num_steps: int) -> State:
    """What changes in a history for a run of `num_steps` that was begun as one of
    `old` steps: averages get the time constants of the new length and keep their
    bias-corrected values.

    Nothing, if there is no history or it does not follow the horizon (as VeLO's with
    `short_loss_history`).
    """
    decays = history.get("loss_decays")
    if decays is None:
        return {}
    if bool((decays - horizon_decays(old).to(decays.device)).abs().max() >= 1e-4):
        return {}
    new = horizon_decays(num_steps).to(decays.device)
    count = history["loss_count"]
    scale = _correction(new, count) / _correction(decays, count)
    return {"loss_means": history["loss_means"] * scale, "loss_decays": new}


def horizon(history: State) -> Tensor:
    """The number of steps [] that the history was built for, read off its slowest
    average: exact to 4,000, to 3 % at a million (float32), at most 1.7e7."""
    rate = -torch.log(history["loss_decays"][-1])
    return torch.round(1.0 / rate.clamp_min(2.0**-25))


def inputs(centres: Tensor, history: State, fraction: Tensor) -> Tensor:
    """[18] time features, then loss features.

    **Arguments:**

    - `centres`: `FRACTION_CENTRES` on the device of the rest.
    - `fraction`: [] steps before this one / horizon, at most 1.
    """
    return torch.cat([torch.tanh(10.0 * (fraction - centres)), _features(history)])


def _features(history: State) -> Tensor:
    """[9] in [-1, 1]; zero for the first two losses."""
    d, count = history["loss_decays"], history["loss_count"]
    corrected = history["loss_means"] / _correction(d, count)
    minima = history["loss_minima"][:-1]
    span = (corrected[1:] - minima).clamp_min(1e-8)
    raw = ((corrected[:-1] - minima) / span - 1.0).clamp(-1.0, 1.0)
    return torch.where(count <= 2, torch.zeros_like(raw), raw)


def _correction(decays: Tensor, count: Tensor) -> Tensor:
    """1 - d^t, exact for decays near one; see `lopax.blocks.loss_history`."""
    steps = count.clamp_min(1).float()
    exact = -torch.expm1(steps * torch.log1p(decays - 1.0))
    return torch.where(decays > _FAST, exact, 1.0 - torch.pow(decays, steps))
