"""What a training step costs on the tasks of a suite, beside Adam's in the same run.

    python benchmarks/suite_cost.py [lite] [--optimizers celo2 celo muon ...]

A step is loss, gradient and update on one thread. Adam and the optimizer are timed in
turn, so that a busy machine slows both; the ratio is the geometric mean over tasks.
(The cost columns of `lopax bench` hold times of different hours.)
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("NPROC", "1")  # read when JAX starts

import numpy as np
from harness import Result, finish

from lopax import evaluate
from lopax.evaluate import cost

ROUNDS = 3


def ratios(specs: list[evaluate.OptimizerSpec], problem: evaluate.Problem) -> list:
    """Step times over Adam's, one per spec; the median of several rounds."""
    task, steps = problem.make(), problem.config.num_steps
    adam = evaluate.baseline("adam")
    rounds = []
    for _ in range(ROUNDS):
        times = [
            cost.measure(s, task, steps, repeats=1).step_ms for s in (adam, *specs)
        ]
        rounds.append([t / times[0] for t in times[1:]])
    found = np.median(rounds, axis=0)
    said = ", ".join(f"{s.name} {r:.2f}" for s, r in zip(specs, found, strict=True))
    print(f"{problem.name}: {said}", file=sys.stderr, flush=True)
    return found.tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="lite")
    parser.add_argument("--optimizers", nargs="+", default=["celo2", "celo", "muon"])
    args = parser.parse_args()
    specs = evaluate.optimizer_specs(args.optimizers)
    problems = evaluate.suite_problems(args.suite, only_available=True)
    table = np.asarray([ratios(specs, problem) for problem in problems])
    return finish(
        [
            Result(
                benchmark="suite_cost",
                case=f"{spec.name} on {args.suite}",
                metric=f"step time over Adam's, {what}",
                value=float(value),
            )
            for spec, column in zip(specs, table.T, strict=True)
            for what, value in (
                ("geometric mean", np.exp(np.log(column).mean())),
                ("lowest", column.min()),
                ("highest", column.max()),
            )
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
