"""What the PyTorch examples share: one run, or a comparison with AdamW and Muon.

An example is a function `train(make, steps, say)` that trains its model with the
optimizer that `make(model)` returns and gives back a held-out number, lower is better.

    python examples/NAME.py                     # the learned optimizer alone
    python examples/NAME.py --compare           # and AdamW and Muon, at each of 3 rates
"""

from __future__ import annotations

import argparse
import dataclasses
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


@dataclasses.dataclass
class Learned:
    """Makes a learned optimizer with everything at its default."""

    name: str
    weights: str | None
    steps: int

    def __call__(self, model: nn.Module) -> lopax.torch.LearnedOptimizer:
        params = trained(model)
        return lopax.torch.optimizer(
            self.name, params, num_steps=self.steps, weights=self.weights
        )


class Together(torch.optim.Optimizer):
    """Several optimizers as one, with the groups of all."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss


class Scheduled:
    """torch optimizers under warm-up (5 %) and a cosine to zero; ignores the loss."""

    def __init__(self, parts: list[torch.optim.Optimizer], steps: int) -> None:
        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
            return rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))

        self.optimizer = parts[0] if len(parts) == 1 else Together(parts)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, loss: torch.Tensor | None = None) -> None:
        del loss
        self.optimizer.step()
        self.schedule.step()


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


def example(about: str, train: Train, *, steps: int, unit: str) -> Learned:
    """The command line of an example; returns the learned optimizer it was given."""
    parser = argparse.ArgumentParser(description=about)
    rules = lopax.torch.RULES.names()
    parser.add_argument("--optimizer", default="celo2", choices=rules)
    parser.add_argument("--weights", help="a weights file instead of the bundled ones")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--compare", action="store_true", help="with AdamW and Muon")
    args = parser.parse_args()

    learned = Learned(args.optimizer, args.weights, args.steps)

    def timed(make: Make, say: Callable[..., None]) -> tuple[float, float]:
        torch.manual_seed(0)
        started = time.monotonic()
        value = train(make, args.steps, say)
        return value, (time.monotonic() - started) / args.steps * 1e3

    found = {f"{args.optimizer}, untuned": timed(learned, print)}
    if args.compare:
        for name, tune in {"adamw": adamw, "muon": muon}.items():
            runs = {r: timed(tune(r, args.steps), _silent) for r in RATES[name]}
            best = min(runs, key=lambda rate: runs[rate][0])
            found[f"{name}, best of {len(runs)} rates ({best:g})"] = runs[best]
    for name, (value, milliseconds) in found.items():
        print(f"{name:<34} {unit} {value:.4f}   {milliseconds:.1f} ms a step")
    return learned


def _silent(*_: Any) -> None:
    pass
