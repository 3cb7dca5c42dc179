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

    with GridDisplay() as display:
        found = evaluate.bench(
            args.suite,
            list(args.optimizers),
            num_steps=args.num_steps,
            seeds=args.seeds,
            only_available=args.only_available,
            reference=args.reference,
            folder=args.out,
            workers=args.workers,
            lanes=args.lanes,
            listener=display,
            command="lopax bench " + shlex.join(argv),
        )
    show(found)
    return 1 if found.outcome.failed else 0
