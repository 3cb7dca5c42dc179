"""Training runs of a comparison: one optimizer, one seed, one learning rate each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lopax._core.errors import ConfigError
from lopax.statistics.curves import Curves
from lopax.torch.contestants import Contestant


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchRuns(Curves):
    """Curves of one optimizer, and what its steps cost."""

    step_ms: float  # median over steps: loss, gradient and update
    state_bytes: int
    parameters: int


class Run:
    """One training run."""

    def __init__(
        self, factory: Any, loader: Any, loss_fn: Any, device: Any, steps: int
    ):
        self.factory, self.loader, self.loss_fn = factory, loader, loss_fn
        self.device, self.steps = device, steps

    def train(
        self, entry: Contestant, rate: float | None, seed: int, valid: Any, looks: Any
    ) -> tuple[Any, ...]:
        torch.manual_seed(seed)
        model = self.factory()
        model = model.to(self.device) if self.device is not None else model
        optimizer: Any = entry.make(list(model.named_parameters()), self.steps, rate)
        if getattr(self.loader, "generator", None) is not None:
            self.loader.generator.manual_seed(seed)
        batches, losses = self._batches(), np.full(self.steps, np.nan, np.float32)
        seen, times = np.full(len(looks), np.nan, np.float32), []
        alive, look = True, 0
        for t in range(self.steps + 1):
            if look < len(looks) and t == looks[look]:
                seen[look] = self._evaluate(model, valid)
                look += 1
            if t == self.steps:
                break
            batch = next(batches)
            started = time.perf_counter()
            loss = self._loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            if entry.learned:
                optimizer.step(loss=loss.detach())
            else:
                optimizer.step()
            losses[t] = loss.item()  # also waits for the device
            times.append(time.perf_counter() - started)
            if not np.isfinite(losses[t]) and not _finite(model):
                alive = False  # it cannot come back: the rest of the curve stays NaN
                break
        held = [v for s in optimizer.state.values() for v in _tensors(s)]
        return (
            losses,
            seen,
            int((~np.isfinite(losses)).sum()),
            not (alive and np.isfinite(losses[-1]) and _finite(model)),
            1e3 * float(np.median(times)),
            sum(v.numel() * v.element_size() for v in held),
            sum(p.numel() for p in model.parameters()),
        )

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self.loss_fn(model, batch)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss)
            raise ConfigError(
                f"loss_fn returned {shape}: it must return a scalar tensor, such as "
                "the mean over the batch"
            )
        return loss

    def _batches(self) -> Iterator[Any]:
        """The loader's batches, over and over."""
        while True:
            count = 0
            for batch in self.loader:
                count += 1
                yield _move(batch, self.device)
            if count == 0:
                raise ConfigError(
                    "data_loader gave no batch; a generator can be gone through only "
                    "once, so pass a DataLoader or a list of batches"
                )

    def _evaluate(self, model: nn.Module, loader: Any) -> float:
        """Mean loss over all held-out batches; leaves torch's generator as it was."""
        if loader is None:
            return float("nan")
        state = torch.random.get_rng_state()
        model.eval()
        with torch.no_grad():
            losses = [float(self._loss(model, _move(b, self.device))) for b in loader]
        model.train()
        torch.random.set_rng_state(state)
        return float(np.mean(losses))


def stacked(
    runs: list[tuple[Any, ...]], seeds: int, eval_steps: Sequence[int]
) -> TorchRuns:
    """What `Run.train` returned, seed by seed and rate by rate, as curves."""

    def grid(i: int, dtype: Any) -> np.ndarray:
        values = np.asarray([run[i] for run in runs], dtype)
        return values.reshape(seeds, -1, *values.shape[1:])

    train, valid = grid(0, np.float32), grid(1, np.float32)
    return TorchRuns(
        train=train,
        valid=valid,
        test=np.full_like(valid, np.nan),
        metrics={},
        nonfinite=grid(2, np.int32),
        updates=np.isfinite(train).sum(-1, dtype=np.int32),
        diverged=grid(3, bool),
        eval_steps=np.asarray(eval_steps),
        step_ms=min(run[4] for run in runs),
        state_bytes=runs[0][5],
        parameters=runs[0][6],
    )


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    nested = isinstance(state, (dict, list, tuple))
    return [t for v in values for t in _tensors(v)] if nested else []


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def _move(batch: Any, device: Any) -> Any:
    if device is None:
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {k: _move(v, device) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [_move(v, device) for v in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
