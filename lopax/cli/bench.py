"""`lopax bench SUITE`: optimizers over a suite of tasks, resumable."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags
from lopax.cli.place import PlaceFlags

ABOUT = """Run optimizers over a suite and write the report. Finished runs are kept in
OUT/results and never repeated: interrupt it and run the same command again.
OPTIMIZERS are names as for `lopax compare`; `published`, `contemporary` and
`baselines` stand for all of a set. Baselines are tuned over 15 or 7 learning rates; for
suites whose tuned baselines come with lopax (and if the data here are the same) those
are used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchFlags(PlaceFlags):
    suite: Annotated[str, tyro.conf.Positional, flags.named("SUITE")]
    """A name from `lopax list suites`."""
    optimizers: Annotated[tuple[str, ...], flags.named("NAME [NAME ...]")] = (
        "celo",
        "adam",
        "adam@0.001",
    )
    """What is compared."""
    seeds: int = 3
    """How many runs of each."""
    reference: str = "adam"
    """What scores are relative to."""
    out: Path = Path("bench")
    """Where results and report go."""
    num_steps: Annotated[int | None, flags.named("INT")] = None
    """Updates, instead of each task's own number."""
    fraction: Annotated[float | None, flags.named("FLOAT")] = None
    """Of each task's own number of updates, for a first look."""
    gpus_per_job: float = 0.0
    """For --executor ray; a fraction shares one GPU among several jobs."""
    vmap_size: Annotated[int, tyro.conf.arg(aliases=("--lanes",))] = 16
    """Training runs side by side in one program, at most."""
    only_available: bool = False
    """Leave out tasks whose data are not on this machine."""
    shipped: bool = True
    """Use the tuned baselines that come with lopax, where they fit."""
    time_all: bool = False
    """Also time the baselines that came with lopax: some seconds each on every task."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(BenchFlags, argv, "bench", ABOUT)
    from lopax import evaluate
    from lopax.cli.judging import GridDisplay, show

    with GridDisplay() as display:
        found = evaluate.bench(
            args.suite,
            list(args.optimizers),
            num_steps=args.num_steps,
            fraction=args.fraction,
            seeds=args.seeds,
            only_available=args.only_available,
            shipped=args.shipped,
            reference=args.reference,
            folder=args.out,
            gpus_per_job=args.gpus_per_job,
            vmap_size=args.vmap_size,
            time_all=args.time_all,
            listener=display,
            command="lopax bench " + shlex.join(argv),
            **args.options(),
        )
    show(found)
    return 1 if found.outcome.failed else 0
