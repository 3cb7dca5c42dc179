"""Whether each architecture's recipe improves on its initialisation, and at what cost.

    python benchmarks/recipes.py [--rules velo star ...] [--seeds 5] [--out FOLDER]

Runs recipes/NAME.toml for every architecture (but those of the bundled weights), then
trains with theta before and after: tasks of the family it was meta-trained on, with
fresh seeds, and another network (three tanh layers of 32) for twice the horizon,
unless the rule is for one network. The geometric mean over seeds of the mean loss over
all steps is compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from harness import Result, finish

from lopax import evaluate, meta, tasks
from lopax._core.config import config_hash
from lopax.architectures import ARCHITECTURES
from lopax.meta import distributed
from lopax.meta.loop import initial_theta

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
BUNDLED = ("celo", "celo2", "celo_adam", "optim4rl")
MINUTES = 10.0


def names() -> list[str]:
    own = {p.stem for p in RECIPES.glob("*.toml")} & set(ARCHITECTURES)
    return sorted(own.difference(BUNDLED))


def tests(run: meta.RunConfig) -> dict[str, tuple[tasks.Task, int]]:
    """Name -> a task and how long to train it."""
    (family,) = meta.build_families(run.tasks)
    steps = run.estimator.horizon_high
    found: dict[str, tuple[tasks.Task, int]] = {
        "trained on": (tasks.SampledTask(family), steps)
    }
    if not isinstance(run.tasks[0], tasks.FineTuningSettings):
        other = tasks.task("digits_mlp_tanh", hidden=[32, 32, 32])
        found["other net"] = (other, 2 * steps)
    return found


def mean_loss(
    run: meta.RunConfig, theta, task: tasks.Task, steps: int, seeds: int
) -> float:
    """Geometric mean over seeds of a run's mean loss; a diverged run counts 1e3."""
    spec = evaluate.learned(run.architecture, theta, **run.settings)
    config = evaluate.RunConfig(num_steps=steps, eval_every=steps, eval_batches=1)
    found = evaluate.run(spec, task, config, seeds=list(range(seeds)))
    losses = np.nan_to_num(found.train[:, 0], nan=1e3, posinf=1e3).clip(1e-6, 1e3)
    return float(np.exp(np.log(losses.mean(axis=1)).mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", choices=names(), default=names())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    args = parser.parse_args()
    distributed.request_cpu_devices()
    results = []
    for name in args.rules:
        run = meta.load_recipe(RECIPES / f"{name}.toml")
        run = dataclasses.replace(run, name=name)
        folder = args.out / f"{name}-{config_hash(run, 8)}"
        earlier = (folder / "config.json").exists()
        started = time.process_time()
        trained = meta.train(
            run,
            meta.build_families(run.tasks),
            folder,
            mesh=distributed.default_mesh(run),
            resume=earlier,
        ).theta
        minutes = (time.process_time() - started) / 60
        for label, (task, steps) in tests(run).items():
            before, after = (
                mean_loss(run, theta, task, steps, args.seeds)
                for theta in (initial_theta(run), trained)
            )
            said = f"{name}, {label}: {after:.3g} after, {before:.3g} before"
            print(said, file=sys.stderr, flush=True)
            bound = 1.0 if label == "trained on" else None
            results.append(
                Result(
                    benchmark="recipes",
                    case=f"{name}/{label}",
                    metric="mean loss, against the initialisation's",
                    value=after,
                    reference=before,
                    ratio=after / before,
                    target=bound,
                    ok=bound is None or after < before,
                )
            )
        if earlier:  # then most of it was trained, and paid for, in an earlier call
            continue
        results.append(
            Result(
                benchmark="recipes",
                case=name,
                metric="CPU minutes",
                value=minutes,
                target=MINUTES,
                ok=minutes <= MINUTES,
            )
        )
        print(f"{name}: {minutes:.1f} CPU minutes", file=sys.stderr, flush=True)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
