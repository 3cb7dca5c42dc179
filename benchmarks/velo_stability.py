"""What keeps a small VeLO stable far beyond its training: a bound on its norm factor.

    lopax reproduce velo_small
    python benchmarks/velo_stability.py [--runs FOLDER] [--seeds 5]

Takes the rules that `lopax reproduce velo_small` meta-trained on mixed horizons (20 to
160 steps of an MLP with 32 hidden units) and runs them, not retrained, with the norm
factor as published and clipped: at 200 and 1,000 steps, and on a wider and deeper
network. Prints the median and the worst over seeds of the last loss, per meta-seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from harness import Result, finish

import lopax
from lopax import evaluate, tasks
from lopax.reproductions.velo_small import VELO_SMALL

VARIANT = "mixed horizons"
LIMITS: tuple[float | None, ...] = (None, 0.2, 0.1)
TESTS = {
    "T = 200": ("digits_mlp_32", {}, 200),
    "T = 1,000": ("digits_mlp_32", {}, 1000),
    "64-64-64, T = 200": ("digits_mlp_32", {"hidden": [64, 64, 64]}, 200),
}
STABLE = 0.15
"""The last loss below which the reproduction calls a run stable."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce-velo_small"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    found = sorted(args.runs.glob(f"{VARIANT}-*/weights.safetensors"))
    if not found:
        parser.error(f"no meta-trained rules in {args.runs}; see the commands above")
    settings = VELO_SMALL.variants[VARIANT].settings
    seeds = list(range(args.seeds))
    results = []
    for limit in LIMITS:
        norm = {} if limit is None else {"norm_factor": "clipped", "norm_limit": limit}
        for label, (name, changes, steps) in TESTS.items():
            task = tasks.task(name, **changes)
            config = evaluate.RunConfig(
                num_steps=steps, eval_every=steps, eval_batches=1
            )
            for meta_seed, path in enumerate(found):
                theta = lopax.load_theta(path, "velo")
                spec = evaluate.learned("velo", theta, **settings, **norm)
                losses = evaluate.run(spec, task, config, seeds=seeds).train[:, 0]
                last = np.nan_to_num(losses[:, -max(1, steps // 20) :], nan=np.inf)
                last = last.mean(axis=1)
                shown = "as published" if limit is None else f"clipped at {limit}"
                results.append(
                    Result(
                        benchmark="velo_stability",
                        case=f"{shown}/{label}/meta-seed {meta_seed}",
                        metric="last loss, worst seed (reference: median)",
                        value=float(last.max()),
                        reference=float(np.median(last)),
                        target=STABLE,
                        ok=bool(last.max() < STABLE),
                    )
                )
                print(results[-1].case, last, file=sys.stderr, flush=True)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
