"""`lopax compare PROBLEM`: optimizers on the user's own problem."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags
from lopax.cli.place import PlaceFlags

ABOUT = """Train your own problem with several optimizers and report which is better.

PROBLEM is a Python file with init(key) -> params and loss(params[, batch]) -> scalar
(and data = (x, y) or batch(key) if the loss takes a batch), or the name of a task from
`lopax list tasks`. OPTIMIZERS are names from `lopax list optimizers` and `lopax list
baselines`: `adam` is tuned over 15 learning rates, adam@0.001 is Adam at one, celo:FILE
is Celo with other weights, LABEL=... renames."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareFlags(PlaceFlags):
    problem: Annotated[str, tyro.conf.Positional, flags.named("PROBLEM")]
    """A Python file, or the name of a task."""
    optimizers: Annotated[tuple[str, ...], flags.named("NAME [NAME ...]")] = (
        "celo",
        "adam",
        "adam@0.001",
    )
    """What is compared."""
    num_steps: int = 1_000
    """Updates of a run; what learned optimizers are told as well."""
    seeds: int = 3
    """How many runs of each."""
    reference: str = "adam"
    """What scores are relative to."""
    out: Path = Path("comparison")
    """Where results and report go."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(CompareFlags, argv, "compare", ABOUT)
    from lopax import evaluate
    from lopax.cli.judging import GridDisplay, show

    with GridDisplay() as display:
        found = evaluate.compare(
            args.problem,
            list(args.optimizers),
            num_steps=args.num_steps,
            seeds=args.seeds,
            reference=args.reference,
            folder=args.out,
            listener=display,
            command="lopax compare " + shlex.join(argv),
            **args.options(),
        )
    show(found)
    return 1 if found.outcome.failed else 0
