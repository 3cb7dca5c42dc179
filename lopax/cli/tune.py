"""`lopax tune BASELINE TASK`: learning-rate sweeps of baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax._core.errors import ConfigError
from lopax.cli import flags
from lopax.cli.place import PlaceFlags
from lopax.cli.stdio import say

ABOUT = """Sweep a baseline's learning rate on a task (name or Python file) and print
the final smoothed training loss for each value. Stopped, it begins anew.

TASK may also be a suite and BASELINE a set (`published`, `contemporary`, `tuning_free`,
`baselines`): then all are tuned, resumably, in RESULTS, and ARCHIVE gets the chosen
learning rates with their curves. The tuned baselines that come with lopax are made so:
lopax tune baselines lite --archive lopax/evaluate/shipped/lite.npz"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneFlags(PlaceFlags):
    baseline: Annotated[str, tyro.conf.Positional, flags.named("BASELINE")]
    """A name from `lopax list baselines`, or a set."""
    task: Annotated[str, tyro.conf.Positional, flags.named("TASK")]
    """A task, a Python file, or a suite."""
    num_steps: Annotated[int | None, flags.named("INT")] = None
    """Updates of a run; default 1,000, or each task's own number in a suite."""
    seeds: int = 3
    """How many runs at each learning rate."""
    results: Path = Path("tuning")
    """For a suite: where runs are kept."""
    archive: Annotated[Path | None, flags.named("FILE")] = None
    """For a suite: the archive to write; default RESULTS/SUITE.npz."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(TuneFlags, argv, "tune", ABOUT)
    from lopax.tasks.suites import SUITES

    return _suite(args) if args.task in SUITES else _task(args)


def _task(args: TuneFlags) -> int:
    from lopax import evaluate
    from lopax.cli.console import table

    spec = evaluate.optimizer_spec(args.baseline)
    if not spec.tunable:
        raise ConfigError(
            f"{spec.name!r} has one setting and no learning rate to tune; see what it "
            f"does with `lopax compare {args.task} --optimizers {spec.name}`"
        )
    steps = 1_000 if args.num_steps is None else args.num_steps
    config = evaluate.RunConfig(num_steps=steps, eval_every=steps)
    problem = evaluate.user_problem(args.task, config)
    result = evaluate.run(spec, problem.make(), config, list(range(args.seeds)))
    tuned = evaluate.tune(result.train, result.diverged)
    rows = [
        [f"{rate:g}", f"{loss:.4g}", "best" if i == tuned.index else ""]
        for i, (rate, loss) in enumerate(
            zip(spec.learning_rates, tuned.final, strict=True)
        )
    ]
    table(
        f"{args.baseline} on {args.task}", ["learning rate", "final loss", "note"], rows
    )
    if tuned.at_edge:
        say("the best value is at the edge of the grid")
    return 0


def _suite(args: TuneFlags) -> int:
    from lopax import evaluate
    from lopax.cli.console import table
    from lopax.cli.judging import GridDisplay
    from lopax.evaluate import TUNING_FREE

    specs = evaluate.optimizer_specs([args.baseline])
    fixed = [s.name for s in specs if not s.tunable and s.name not in TUNING_FREE]
    if fixed:
        raise ConfigError(
            f"{fixed[0]!r} has no learning rate to tune; give a baseline or a set"
        )
    problems = evaluate.suite_problems(args.task, num_steps=args.num_steps)
    with GridDisplay() as display:
        study, outcome = evaluate.run_study(
            evaluate.Store(args.results),
            specs,
            problems,
            range(args.seeds),
            listener=display,
            measure_cost=False,
            **args.options(),
        )
    rows = []
    for (name, task), cell in study.groups.items():
        tuned, _ = cell.best()
        rates = study.spec(name).learning_rates
        rate = f"{rates[tuned.index]:g}" if rates else "-"
        edge = "at the edge" if tuned.at_edge else ""
        rows.append([name, task, rate, f"{min(tuned.final):.4g}", edge])
    columns = ["baseline", "task", "learning rate", "final loss", "note"]
    table(f"tuned on {args.task}", columns, rows)
    target = args.archive or args.results / f"{args.task}.npz"
    packed = evaluate.pack(study, target)
    size = target.stat().st_size / 1e6
    say(f"{target}: {len(packed)} tuned baselines, {size:.2f} MB")
    for run in study.missing:
        say(f"missing: {run.optimizer} on {run.task}: {run.reason}")
    return 1 if outcome.failed else 0
