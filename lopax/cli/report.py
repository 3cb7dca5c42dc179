"""`lopax report RUN`: what happened in a meta-training run, as one HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags

ABOUT = """Write the report of a meta-training run (its folder): meta-loss, gradient
norm and validation curves, configuration and cost. Reports of comparisons are written
by `lopax bench` and `lopax compare`; run the same command again to renew one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportFlags:
    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    """Default: report.html in the run's folder."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(ReportFlags, argv, "report", ABOUT)
    from lopax.cli.train import saved_run
    from lopax.evaluate.run_report import write_run_report

    run = saved_run(args.run)
    target = args.out or args.run / "report.html"
    print(f"report: {write_run_report(args.run, run, target)}")
    return 0
