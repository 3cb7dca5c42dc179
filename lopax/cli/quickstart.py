"""`lopax quickstart`: the whole story in a few CPU minutes, on embedded data."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

from lopax._core.errors import ConfigError
from lopax.cli import flags
from lopax.cli.stdio import note, say

ABOUT = """Meta-train a small Celo in both phases on scikit-learn's digits, then compare
it and the bundled weights, untuned, with tuned Adam and tuned Muon on tasks that
meta-training never saw (the suite `quickstart`). Needs no download; about five minutes
on two CPU cores. Ends with a report."""

BUNDLED = ("celo2", "celo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartFlags:
    out: Path = Path("quickstart")
    """The folder for the run, the results and the report."""
    outer_steps: int = 200
    """Outer steps of each of the two phases."""
    num_steps: int = 400
    """Training steps on each held-out task."""
    seeds: int = 3


def main(argv: Sequence[str]) -> int:
    args = flags.parse(QuickstartFlags, argv, "quickstart", ABOUT)
    started = time.monotonic()
    from lopax import evaluate
    from lopax.cli import train
    from lopax.cli.judging import GridDisplay, show
    from lopax.meta import holds_run
    from lopax.meta.distributed import request_cpu_devices
    from lopax.pretrained import list_weights
    from lopax.theta import load_theta

    run = recipe(args.outer_steps)
    folder = args.out / "run"
    if holds_run(folder):
        raise ConfigError(
            f"{folder} holds a run already: remove it, or choose another folder with "
            "--out"
        )
    say("1/2  meta-training Celo on digits: the rule, then the scheduler")
    request_cpu_devices()
    code = train.execute(run, folder)
    if code:
        return code
    say("2/2  comparing on held-out tasks with Adam and Muon")
    fresh = evaluate.learned(
        "celo", load_theta(folder / "weights.safetensors"), label="celo (just trained)"
    )
    bundled = [n for n in BUNDLED if n in list_weights()]
    entries: list = [fresh, *(f"{n} (bundled)={n}" for n in bundled)]
    entries += ["muon", "adam", "adam at 0.001=adam@0.001"]
    with GridDisplay() as display:
        found = evaluate.bench(
            "quickstart",
            entries,
            title="Optimizers on tasks that meta-training never saw",
            num_steps=args.num_steps,
            seeds=args.seeds,
            folder=args.out,
            measure_cost=False,
            listener=display,
            command="lopax quickstart",
        )
    show(found)
    note(f"all in {time.monotonic() - started:.0f} s")
    return 1 if found.outcome.failed else 0


def recipe(outer_steps: int):
    """A short two-phase run that starts from a rule that already moves downhill."""
    from lopax import meta

    return meta.RunConfig(
        name="quickstart",
        settings={"start": "adam"},
        tasks=(meta.TasksConfig(datasets=("digits",)),),
        estimator=meta.EstimatorConfig(particles=16, horizon_high=1_000),
        outer=meta.OuterConfig(
            learning_rate=3e-3,
            schedule="cosine",
            warmup=min(10, outer_steps // 2),
            clip_norm=5.0,
            weight_decay=0.0,
            average=0.95,
        ),
        phases=(
            meta.PhaseConfig(
                name="rule",
                outer_steps=outer_steps,
                trainable=("rule/*",),
                settings={"phase": 1},
            ),
            meta.PhaseConfig(
                name="scheduler",
                outer_steps=outer_steps,
                trainable=("scheduler/*",),
                outer={"learning_rate": 1e-3},
            ),
        ),
        log_every=math.gcd(10, outer_steps),
        eval_every=0,
        eval_tasks=(),
    )
