"""Bundled Optim4RL against Adam on agents, most in environments it never saw.

    python benchmarks/agents.py [--seeds 4] [--updates 390]

Actor-critic agents (one layer of 64 units, 32 environments at a time); the mean return
over training, for Adam at each of its rates. Optim4RL was meta-trained on Catch, and
has no rate to choose. A ratio is its return to Adam's best, both above what agents get
that never learn.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import numpy as np
from harness import Result, finish

from lopax import evaluate
from lopax.reproductions.rl_agents import play

ENVIRONMENTS = (
    "catch",
    "cartpole",
    "grid_small_dense_short",
    "grid_small_dense_long",
    "grid_small_sparse_short",
)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SETTINGS = {"hidden": [64], "test_envs": 32, "look_every": 10}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--updates", type=int, default=390)
    args = parser.parse_args()
    adam = dataclasses.replace(evaluate.baseline("adam"), learning_rates=RATES)
    specs = {
        "no learning": evaluate.default_rate("sgd", 1e-30),
        "adam": adam,
        "optim4rl": evaluate.optimizer_specs(["optim4rl"])[0],
    }
    seeds, results = list(range(args.seeds)), []
    for environment in ENVIRONMENTS:
        returns = {
            name: [
                r.auc for r in play(SETTINGS, spec, environment, args.updates, seeds)
            ]
            for name, spec in specs.items()
        }
        low, best = returns["no learning"][0], float(np.nanmax(returns["adam"]))
        for name, found in returns.items():
            labels = [f"adam {rate:g}" for rate in RATES] if name == "adam" else [name]
            for label, value in zip(labels, found, strict=True):
                results.append(
                    Result(
                        benchmark="agents",
                        case=f"{environment}, {label}",
                        metric="mean return over training",
                        value=value,
                        reference=best,
                        ratio=(value - low) / (best - low),
                    )
                )
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
