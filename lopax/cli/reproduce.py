"""`lopax reproduce NAME`: a paper's claim, re-run at small scale or at its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags
from lopax.cli.stdio import note, say

ABOUT = """Re-run a paper's claim at small scale: meta-train its variants with several
meta-seeds, test them, print the table, draw the plot and say pass or fail by a rule
fixed beforehand. Stopped at any moment, the same command goes on where it was.

lopax list reproductions
lopax reproduce star
lopax reproduce star --share 0.1 --meta-seeds 1     a quick look, not a verdict
lopax reproduce mechanisms --size paper             hours rather than minutes"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceFlags:
    name: Annotated[str, tyro.conf.Positional]
    size: str = "small"
    """"small", minutes; or "paper": the paper's own setting as far as two CPU cores
    carry it (`lopax list reproductions` says for which, and how long)."""
    meta_seeds: int | None = None
    """How often everything is meta-trained anew; default: as its rule asks."""
    share: float = 1.0
    """Share of the outer steps to run."""
    out: Path | None = None
    """Folder for runs and report; default runs/reproduce-NAME (-paper)."""


def main(argv: Sequence[str]) -> int:
    """Exit code 0 if the rule passed, 1 if not."""
    args = flags.parse(ReproduceFlags, argv, "reproduce", ABOUT)
    from lopax import reproductions
    from lopax.cli.console import table
    from lopax.meta.distributed import request_cpu_devices

    request_cpu_devices()

    study = reproductions.reproduction(args.name, args.size)
    suffix = "" if args.size == "small" else f"-{args.size}"
    folder = args.out or Path("runs") / f"reproduce-{study.name}{suffix}"
    note(f"{study.claim}\n({study.source})\nRule: {study.rule}.")
    note(f"about {study.minutes:.0f} minutes in all; runs in {folder}")
    seeds = study.meta_seeds if args.meta_seeds is None else args.meta_seeds
    started = time.monotonic()
    found = study.carry_out(folder, meta_seeds=range(seeds), share=args.share, say=note)
    for title, columns, rows in found.tables:
        table(f"{study.name}: {title}", list(columns), [list(row) for row in rows])
    for check in found.checks:
        say(f"{'pass' if check.passed else 'FAIL'}: {check.claim}: {check.found}")
    command = f"lopax reproduce {study.name}"
    if args.size != "small":
        command += f" --size {args.size}"
    if seeds != study.meta_seeds or args.share != 1.0:
        command += f" --meta-seeds {seeds} --share {args.share}"
    report = reproductions.write(study, found, folder, command)
    say(f"report: {report} ({time.monotonic() - started:.0f} s)")
    return 0 if found.passed else 1
