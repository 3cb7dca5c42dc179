"""What the PyTorch examples share: one run, or a comparison with AdamW and Muon.

An example is a function `train(make, steps, say)` that trains its model with the
optimizer that `make(model)` returns and gives back a held-out number, lower is better.

    python examples/NAME.py                     # the learned optimizer alone
    python examples/NAME.py --compare           # and AdamW and Muon, at each of 3 rates
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lopax.torch

RATES = {"adamw": (1e-3, 3e-3, 1e-2), "muon": (3e-3, 1e-2, 3e-2)}
Make = Callable[[nn.Module], Any]
Train = Callable[[Make, int, Callable[..., None]], float]


class Scheduled:
    """torch optimizers under warm-up (5 %) and a cosine to zero; ignores the loss."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
            return rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))

        self.optimizers = optimizers
        schedule = torch.optim.lr_scheduler.LambdaLR
        self.schedules = [schedule(o, factor) for o in optimizers]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self, loss: torch.Tensor | None = None) -> None:
        del loss
        for part in (*self.optimizers, *self.schedules):
            part.step()


def adamw(rate: float, steps: int) -> Make:
    """AdamW as it is usually used: decay 0.1 on matrices, warm-up, cosine."""

    def make(model: nn.Module) -> Scheduled:
        return Scheduled([_adamw(model, rate, lambda name, p: True)], steps)

    return make


def muon(rate: float, steps: int) -> Make:
    """Muon for hidden matrices, AdamW at 0.003 for the rest, both scheduled."""

    def make(model: nn.Module) -> Scheduled:
        hidden = [p for n, p in trained(model) if is_hidden(n, p)]
        first = torch.optim.Muon(hidden, lr=rate, adjust_lr_fn="match_rms_adamw")
        if len(hidden) == len(trained(model)):
            return Scheduled([first], steps)
        rest = _adamw(model, 3e-3, lambda name, p: not is_hidden(name, p))
        return Scheduled([first, rest], steps)

    return make


def is_hidden(name: str, p: torch.Tensor) -> bool:
    outer = ("token", "position", "embed", "head", "wte", "wpe")
    return p.ndim == 2 and not any(part in name for part in outer)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def _adamw(model: nn.Module, rate: float, wanted: Any) -> torch.optim.AdamW:
    chosen = [p for n, p in trained(model) if wanted(n, p)]
    groups = [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in chosen if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate)


def example(
    about: str,
    train: Train,
    *,
    steps: int,
    unit: str,
    baselines: tuple[str, ...] = ("adamw", "muon"),
) -> None:
    """The command line of an example; `baselines`: what --compare adds."""
    parser = argparse.ArgumentParser(description=about)
    rules = lopax.torch.RULES.names()
    parser.add_argument("--optimizer", default="celo2", choices=rules)
    parser.add_argument("--weights", help="a weights file instead of the bundled ones")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--compare", action="store_true", help="with AdamW and Muon")
    args = parser.parse_args()

    def learned(model: nn.Module) -> Any:
        return lopax.torch.optimizer(
            args.optimizer,
            trained(model),
            num_steps=args.steps,
            weights=args.weights,
        )

    def timed(make: Make, say: Callable[..., None]) -> tuple[float, float]:
        torch.manual_seed(0)
        started = time.monotonic()
        value = train(make, args.steps, say)
        return value, (time.monotonic() - started) / args.steps * 1e3

    found = {f"{args.optimizer}, untuned": timed(learned, print)}
    if args.compare:
        for name in baselines:
            tune = {"adamw": adamw, "muon": muon}[name]
            runs = {r: timed(tune(r, args.steps), _silent) for r in RATES[name]}
            best = min(runs, key=lambda rate: runs[rate][0])
            found[f"{name}, best of {len(runs)} rates ({best:g})"] = runs[best]
    for name, (value, milliseconds) in found.items():
        print(f"{name:<34} {unit} {value:.4f}   {milliseconds:.1f} ms a step")


def _silent(*_: Any) -> None:
    pass
