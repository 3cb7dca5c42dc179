"""What the JAX examples share: one run, or a comparison with AdamW and Muon.

An example is a function `train(opt, steps)` that trains its model with an optax
transformation and returns the training losses [steps] and a held-out number, lower is
better.

    python examples/NAME.py                     # the learned optimizer alone
    python examples/NAME.py --compare           # and AdamW and Muon, at each of 3 rates
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import optax
from optax import contrib

import lopax

RATES = {"adamw": (1e-3, 3e-3, 1e-2), "muon": (3e-3, 1e-2, 3e-2)}
Train = Callable[[optax.GradientTransformationExtraArgs, int], tuple[Any, Any]]


def baseline(name: str, rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon under a warm-up (5 %) and a cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rate, max(1, steps // 20), max(2, steps)
    )
    make = {"adamw": optax.adamw, "muon": contrib.muon}[name]
    return make(schedule)


def example(about: str, train: Train, *, steps: int, unit: str) -> None:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--optimizer", default="celo2", choices=lopax.list_weights())
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--compare", action="store_true", help="with AdamW and Muon")
    args = parser.parse_args()

    def timed(opt: optax.GradientTransformation) -> tuple[float, float, Any]:
        started = time.monotonic()
        losses, value = train(optax.with_extra_args_support(opt), args.steps)
        return float(value), time.monotonic() - started, losses

    value, seconds, losses = timed(
        lopax.optimizer(args.optimizer, num_steps=args.steps)
    )
    for step in (*range(0, args.steps, max(1, args.steps // 8)), args.steps - 1):
        print(f"step {step:4d}  loss {losses[step]:.4f}")
    found = {f"{args.optimizer}, untuned": (value, seconds)}
    if args.compare:
        for name, rates in RATES.items():
            runs = {r: timed(baseline(name, r, args.steps)) for r in rates}
            best = min(runs, key=lambda rate: runs[rate][0])
            found[f"{name}, best of {len(runs)} rates ({best:g})"] = runs[best][:2]
    for name, (value, seconds) in found.items():
        print(f"{name:<34} {unit} {value:.4f}   {seconds:.0f} s with compilation")
