"""What tuned baselines score at one learning rate for all tasks of a suite.

    python benchmarks/one_rate.py STORE [--suite lite] [--optimizers muon adam ...]

Tuning on each task takes fifteen runs; most people set one rate and keep it. Reads the
sweeps that `lopax bench` left in its store (OUT/results) and takes, for each baseline,
the single rate that is best over all tasks, in hindsight. Score: Adam's final loss at
its best rate on each task over the baseline's, both of the mean curve over seeds;
interquartile mean over tasks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from harness import Result, finish

from lopax import evaluate
from lopax.evaluate import aggregate
from lopax.evaluate.study import collect


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--suite", default="lite")
    parser.add_argument("--optimizers", nargs="+", default=["baselines"])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    specs = evaluate.optimizer_specs(["adam", *args.optimizers])
    specs = list({spec.name: spec for spec in specs}.values())
    problems = evaluate.suite_problems(args.suite, only_available=True)
    study = collect(evaluate.Store(args.store), specs, problems, range(args.seeds))

    def finals(name: str) -> np.ndarray:
        """[tasks, rates]"""
        cells = [study.cells[name, p.name] for p in problems]
        return np.stack([cell.best()[0].final for cell in cells])

    results = []
    target = finals("adam").min(axis=1, keepdims=True)
    for spec in specs:
        if any((spec.name, p.name) not in study.cells for p in problems):
            print(f"{spec.name}: not tuned on every task, left out", file=sys.stderr)
            continue
        scores = target / finals(spec.name)
        every = aggregate.iqm(scores.T[:, None])
        best = int(every.argmax())
        results.append(
            Result(
                benchmark="one_rate",
                case=f"{spec.name} at {spec.learning_rates[best]:.3g}",
                metric="score, IQM (reference: tuned on each task)",
                value=float(every[best]),
                reference=float(aggregate.iqm(scores.max(axis=1))),
            )
        )
    return finish(sorted(results, key=lambda r: -r.value))


if __name__ == "__main__":
    sys.exit(main())
