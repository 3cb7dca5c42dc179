"""What each choice in the meta-training of Celo and Celo2 is worth, at a small scale.

    python benchmarks/ablations.py [--only celo2 "celo2: ..."] [--meta-seeds 3]
        [--outer-steps 400] [--out FOLDER]

Every variant changes one thing of a short run (three kinds of tasks, 24 particles;
Celo2 from where its recipe starts, Celo from an Adam-like rule and a falling schedule)
and is meta-trained with several seeds. Judged by the tasks of the suite
`validation`, shortened to 300 updates: the geometric mean over tasks of the best Adam's
final training loss (six rates) over the rule's, two inner seeds; 0.05 at worst, 20 at
best for a task. The interval is the range over meta-seeds. Finished runs are kept in
the folder and not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Result, final_losses, finish

from lopax import evaluate, meta
from lopax._core.config import config_hash
from lopax._core.types import Theta
from lopax.meta import distributed
from lopax.tasks.suites import suite

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
RATES = (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2)
STEPS, SEEDS = 300, 2
KINDS = ("mlp", "conv", "autoencoder")

Change = Callable[[meta.RunConfig], meta.RunConfig]


def tasks_with(**changes: Any) -> Change:
    """The same kinds of tasks with other settings."""

    def change(run: meta.RunConfig) -> meta.RunConfig:
        groups = tuple(dataclasses.replace(t, **changes) for t in run.tasks)
        return dataclasses.replace(run, tasks=groups)

    return change


def settings_with(**changes: Any) -> Change:
    """The same architecture with other settings."""
    return lambda run: dataclasses.replace(run, settings=run.settings | changes)


def one_kind(run: meta.RunConfig) -> meta.RunConfig:
    return dataclasses.replace(run, tasks=run.tasks[:1])


def jointly(run: meta.RunConfig) -> meta.RunConfig:
    """All that is trained in any phase, from the start, for as long."""
    steps = sum(p.outer_steps for p in run.phases)
    names = tuple(dict.fromkeys(t for p in run.phases for t in p.trainable))
    phase = meta.PhaseConfig(name="all", outer_steps=steps, trainable=names)
    return dataclasses.replace(run, phases=(phase,))


def as_published(run: meta.RunConfig) -> meta.RunConfig:
    """From random theta: the rule at constant steps, then a random scheduler's head."""
    first = dataclasses.replace(run.phases[0], settings={"phase": 1})
    run = dataclasses.replace(run, phases=(first, *run.phases[1:]))
    return settings_with(start="random")(run)


def a_part(run: meta.RunConfig, of: int) -> meta.RunConfig:
    phases = tuple(
        dataclasses.replace(p, outer_steps=max(run.log_every, p.outer_steps // of))
        for p in run.phases
    )
    return dataclasses.replace(run, phases=phases)


SHORTER: dict[str, Change] = {
    "hardly trained": functools.partial(a_part, of=1_000),
    "a quarter of the steps": functools.partial(a_part, of=4),
}
CHANGES: dict[str, dict[str, Change]] = {
    "celo2": {
        "": lambda run: run,
        **SHORTER,
        "not rescaled": tasks_with(augment="none"),
        "rescaled by up to 1,000": tasks_with(augment_low=1e-3, augment_high=1e3),
        "one kind of task": one_kind,
        "one data set": tasks_with(datasets=("mnist",)),
        "sliced convolutions": settings_with(convolutions="slices"),
        "constant steps": settings_with(schedule="constant"),
        "from random theta": lambda run: dataclasses.replace(run, start_from=None),
    },
    "celo": {
        "": lambda run: run,
        **SHORTER,
        "not rescaled": tasks_with(augment="none"),
        "one kind of task": one_kind,
        "one data set": tasks_with(datasets=("mnist",)),
        "jointly": jointly,
        "from random theta": as_published,
    },
}
# From random theta a run this short hardly leaves the plateau at the beginning.
START: dict[str, dict[str, Any]] = {
    "celo2": {},  # its recipe's
    "celo": {"start_from": None, "start_parts": {}, "settings": {"start": "adam"}},
}
PHASES = {
    "celo2": {"all": ("*",)},
    "celo": {"rule": ("rule/*",), "scheduler": ("scheduler/head/*",)},
}
VARIANTS = {
    f"{rule}: {change}" if change else rule: (rule, how)
    for rule, changes in CHANGES.items()
    for change, how in changes.items()
}


def base(rule: str, outer_steps: int) -> meta.RunConfig:
    """The run that the variants of a rule change: its recipe, shorter."""
    run = meta.load_recipe(RECIPES / f"{rule}.toml")
    kinds = {t.network: t for t in reversed(run.tasks)}  # type: ignore[union-attr]
    phases = tuple(
        meta.PhaseConfig(
            name=name,
            outer_steps=outer_steps // len(PHASES[rule]),
            trainable=trainable,
        )
        for name, trainable in PHASES[rule].items()
    )
    return dataclasses.replace(
        run,
        **START[rule],
        tasks=tuple(kinds[k] for k in KINDS),
        estimator=dataclasses.replace(run.estimator, particles=24, chunk=8),
        phases=phases,
    )


def problems() -> dict[str, Any]:
    return {member.name: member.make() for member in suite("validation").tasks}


def final(spec: evaluate.OptimizerSpec, task: Any) -> np.ndarray:
    return final_losses(spec, task, STEPS, range(SEEDS))


def adam(tasks: dict[str, Any]) -> dict[str, np.ndarray]:
    tuned = dataclasses.replace(evaluate.baseline("adam"), learning_rates=RATES)
    return {name: final(tuned, task) for name, task in tasks.items()}


def score(
    run: meta.RunConfig, theta: Theta, tasks: Any, reference: dict[str, np.ndarray]
) -> float:
    """See the module docstring."""
    spec = evaluate.learned(run.architecture, theta, **run.settings)
    ratios = [np.mean(np.log(reference[k] / final(spec, t))) for k, t in tasks.items()]
    bound = np.log(20.0)
    return float(np.exp(np.mean(np.clip(ratios, -bound, bound))))


def scores(
    name: str, meta_seeds: Iterable[int], outer_steps: int, out: Path, judge: Callable
) -> list[float]:
    """One per meta-seed."""
    rule, change = VARIANTS[name]
    found = []
    for seed in meta_seeds:
        run = change(base(rule, outer_steps))
        run = dataclasses.replace(run, seed=seed, name=f"ablation_{seed}")
        folder = out / config_hash(run, 12)
        theta = meta.train(
            run,
            meta.build_families(run.tasks),
            folder,
            mesh=distributed.default_mesh(run),
            resume=(folder / "config.json").exists(),
        ).theta
        kept = folder / "score.txt"
        if not kept.exists():
            kept.write_text(repr(judge(run, theta)))
        found.append(float(kept.read_text()))
        print(f"{name}, seed {seed}: {found[-1]:.3f}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--meta-seeds", type=int, default=3)
    parser.add_argument("--outer-steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args()
    distributed.request_cpu_devices()
    tasks = problems()

    @functools.cache
    def reference() -> dict[str, np.ndarray]:
        return adam(tasks)

    def judge(run: meta.RunConfig, theta: Theta) -> float:
        return score(run, theta, tasks, reference())

    results = []
    for name in args.only:
        seeds = range(args.meta_seeds)
        found = scores(name, seeds, args.outer_steps, args.out, judge)
        for metric, value in (
            ("score, geometric mean", float(np.exp(np.mean(np.log(found))))),
            ("score, lowest", min(found)),
            ("score, highest", max(found)),
        ):
            result = Result(
                benchmark="ablations", case=name, metric=metric, value=value
            )
            results.append(result)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
