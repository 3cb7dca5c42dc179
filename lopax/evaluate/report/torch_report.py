"""The report of a comparison made in PyTorch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lopax.evaluate.report.pages import Paths, write_report
from lopax.evaluate.results.summary import summarise
from lopax.evaluate.results.torch_results import read_torch_comparison


def report_torch_comparison(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    command: str = "",
) -> Paths:
    """Writes the report of the results in `folder` into `target` (default: beside
    them). Raises what `read_torch_comparison`, `summarise` and `write_report` raise."""
    study = read_torch_comparison(folder)
    reference = json.loads((Path(folder) / "comparison.json").read_text())["reference"]
    summary = summarise(study, reference)
    return write_report(target or folder, summary, command=command)
