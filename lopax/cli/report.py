"""`lopax report RUN`: what happened in a run, as one HTML page."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags
from lopax.cli.stdio import made

ABOUT = """Write the report of a meta-training run (its folder): meta-loss, gradient
norm and validation curves, configuration and cost; or of a comparison made in PyTorch
(lopax.torch.comparison). Reports of other comparisons are written by `lopax bench` and
`lopax compare`; run the same command again to renew one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportFlags:
    run: Annotated[Path, tyro.conf.Positional, flags.named("RUN")]
    """The folder of a run."""
    out: Annotated[Path | None, flags.named("PATH")] = None
    """The page to write (for a comparison, the folder); default: in RUN."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(ReportFlags, argv, "report", ABOUT)
    from lopax.evaluate.report.torch_report import report_torch_comparison
    from lopax.evaluate.results.torch_results import is_torch_comparison

    if is_torch_comparison(args.run):
        paths = report_torch_comparison(
            args.run, args.out, command="lopax report " + shlex.join(argv)
        )
        made("report", paths.html)
        return 0
    from lopax.evaluate.report.run_report import write_run_report
    from lopax.meta import read_config

    run = read_config(args.run)
    target = args.out or args.run / "report.html"
    made("report", write_run_report(args.run, run, target))
    return 0
