"""`lopax bench SUITE`: optimizers over a suite of tasks, resumable."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags

ABOUT = """Run optimizers over a suite and write the report. Finished runs are kept in
OUT/results and never repeated: interrupt it and run the same command again.
OPTIMIZERS are names as for `lopax compare`; `published`, `contemporary` and
`baselines` stand for all of a set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchFlags:
    suite: Annotated[str, tyro.conf.Positional]
    optimizers: tuple[str, ...] = ("celo", "adam", "adam@0.001")
    seeds: int = 3
    reference: str = "adam"
    out: Path = Path("bench")
    num_steps: int | None = None
    """Instead of each task's own number of updates."""
    workers: int = 1
    lanes: int = 16
    """Trajectories that run side by side in one program."""
    only_available: bool = False
    """Leave out tasks whose data are not on this machine."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(BenchFlags, argv, "bench", ABOUT)
    from lopax import evaluate
    from lopax.cli.judging import GridDisplay, show
    from lopax.evaluate.compare import without_crashed

    problems = evaluate.suite_problems(
        args.suite, num_steps=args.num_steps, only_available=args.only_available
    )
    specs = evaluate.optimizer_specs(list(args.optimizers))
    if args.reference not in [s.name for s in specs]:
        specs += evaluate.optimizer_specs([args.reference])
    with GridDisplay() as display:
        study, outcome = evaluate.run_study(
            evaluate.Store(args.out / "results"),
            specs,
            problems,
            list(range(args.seeds)),
            title=f"Suite {args.suite}",
            workers=args.workers,
            lanes=args.lanes,
            listener=display,
        )
    study, notes = without_crashed(study, args.reference)
    summary = evaluate.summarise(study, args.reference, allow_missing=True)
    bounded = [p for p in problems if p.passes_below is not None]
    paths = evaluate.write_report(
        args.out,
        summary,
        command="lopax bench " + shlex.join(argv),
        notes=notes,
        failures=evaluate.failure_map(study) if bounded else None,
    )
    show(evaluate.Comparison(summary, outcome, paths))
    return 1 if outcome.failed else 0
