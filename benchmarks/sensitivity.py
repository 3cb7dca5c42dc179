"""Sensitivity of an untuned learned optimizer to unseen conditions.

    python benchmarks/sensitivity.py [--rules celo celo_adam NAME=celo:PATH ...]
        [--only "batch size" ...] [--seeds 3]

One network (two layers of 64 ReLU units on 8x8 images), one thing changed at a time:
the horizon it is told, the batch size, the scale of all parameters, the length of the
run (to ten times the longest of meta-training) and the size of the network (to a
hundred times the largest of meta-training). Each number is the final-loss score: the
smoothed training loss of Adam, at the best of six rates for this very case (relative to
the parameter scale), over the rule's; geometric mean over seeds. 1 is even, 0 is
divergence.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable

import numpy as np
from harness import Result, final_losses, finish

from lopax import evaluate, tasks
from lopax.tasks.augment import ReparametrisedTask

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One setting that is changed."""

    hidden: tuple[int, ...] = (64, 64)
    batch_size: int = 64
    scale: float = 1.0
    """Of the parameters that reach the optimizer, relative to the network's own."""
    steps: int = STEPS
    told: float = 1.0
    """Horizon the rule is told, relative to the length of the run."""


CASES: dict[str, dict[str, Case]] = {
    "told horizon": {
        f"{x:g} x the run": Case(told=x) for x in (0.1, 0.3, 0.5, 1.0, 2.0, 10.0)
    },
    "batch size": {str(b): Case(batch_size=b) for b in (4, 16, 64, 256)},
    "parameter scale": {f"{s:g}": Case(scale=s) for s in (1e-2, 0.1, 1.0, 10.0, 100.0)},
    "run length": {str(n): Case(steps=n) for n in (100, 1_000, 5_000, 20_000)},
    "network size": {
        f"{'-'.join(map(str, h))}": Case(hidden=h, batch_size=16, steps=500)
        for h in ((64, 64), (256, 256), (1024, 1024))
    },
}


def problem(case: Case, dataset: str) -> tasks.Task:
    made = tasks.task(
        f"{dataset}_mlp_128x128",
        hidden=list(case.hidden),
        batch_size=case.batch_size,
        size=8,
        grey=True,
    )
    return ReparametrisedTask(made, np.float32(1.0 / case.scale))


def told(spec: evaluate.OptimizerSpec, factor: float) -> evaluate.OptimizerSpec:
    """The same rule, told another horizon than the run has."""
    make: Callable = spec.make

    def other(num_steps: int, *rest):
        return make(max(1, round(num_steps * factor)), *rest)

    return dataclasses.replace(spec, make=other)


def final(
    spec: evaluate.OptimizerSpec, case: Case, dataset: str, seeds: int
) -> np.ndarray:
    return final_losses(spec, problem(case, dataset), case.steps, range(seeds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", default=["celo", "celo_adam"])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    specs = evaluate.optimizer_specs(args.rules)
    adam = evaluate.baseline("adam")
    results = []
    for group in args.only:
        for label, case in CASES[group].items():
            started = time.perf_counter()
            rates = tuple(case.scale * rate for rate in RATES)
            tuned = dataclasses.replace(adam, learning_rates=rates)
            reference = final(tuned, case, args.dataset, args.seeds)
            said = []
            for spec in specs:
                found = final(told(spec, case.told), case, args.dataset, args.seeds)
                score = np.exp(np.mean(np.log(np.maximum(reference / found, 1e-9))))
                said.append(f"{spec.name} {score:.3f}")
                results.append(
                    Result(
                        benchmark="sensitivity",
                        case=f"{spec.name}/{group}: {label}",
                        metric="final-loss score",
                        value=float(score),
                    )
                )
            took = time.perf_counter() - started
            line = f"{group}: {label}  {', '.join(said)}  ({took:.0f} s)"
            print(line, file=sys.stderr, flush=True)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
