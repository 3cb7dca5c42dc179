"""What `bench`, `compare`, `tune` and `quickstart` share: showing a grid at work."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lopax.cli.stdio import live, note, say
from lopax.evaluate import Comparison, Event, league


class GridDisplay:
    """Progress of a grid of runs: a live bar, or a line per job."""

    def __init__(self) -> None:
        self._live = live()
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=1.0, left="")

    def __enter__(self) -> GridDisplay:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        name = f"{event.job.spec.name} on {event.job.problem.name}"
        done = (event.index + (event.fraction if event.kind != "done" else 1.0)) / max(
            event.jobs, 1
        )
        spent = time.monotonic() - self._started
        left = f"about {spent / done * (1 - done):.0f} s left" if done > 0.02 else ""
        if self._live:
            self._bar.update(self._task, description=name, completed=done, left=left)
        elif event.kind == "done":
            note(f"[{event.index + 1}/{event.jobs}] {name}: {event.message}  {left}")
        if event.kind == "failed":
            print(f"failed: {name}: {event.message.splitlines()[-1]}", file=sys.stderr)


def show(found: Comparison) -> None:
    """The headline table of a comparison."""
    from lopax.cli.console import table

    rows = [
        [
            row.optimizer,
            str(row.runs),
            str(row.budget),
            f"{row.iqm.value:.3f} [{row.iqm.low:.3f}, {row.iqm.high:.3f}]",
            "-" if row.held_out.test is None else f"{row.held_out.test.value:.3f}",
            f"{row.speedup.value:.2f}",
            "-" if row.in_seconds is None else f"{row.in_seconds.value:.2f}",
            str(row.diverged),
            row.verdict,
        ]
        for row in found.summary.rows
    ]
    columns = ["optimizer", "runs", "rates tried", "score IQM [95%]", "test score"]
    columns += ["speed-up", "in seconds"]
    reference = found.summary.reference
    table(
        f"Final-loss score (tuned {reference} = 1, higher is better)",
        [*columns, "diverged", "verdict"],
        rows,
    )
    rows = [
        [
            s.optimizer,
            str(s.budget),
            f"{s.one_setting.iqm:.3f}",
            ", ".join(f"{r:g}" for r in s.one_setting.rates) or "-",
            f"{s.hindsight.iqm:.3f}",
            f"{s.one_setting.lowest:.2f}",
        ]
        for s in league(found.summary)
    ]
    columns = ["optimizer", "rates tried", "chosen on the other tasks", "rates"]
    table(
        "One setting for everything (score, IQM over tasks)",
        [*columns, "best in hindsight", "lowest task"],
        rows,
    )
    if found.shipped is not None and found.shipped.used:
        count = len({optimizer for optimizer, _ in found.shipped.used})
        say(f"{count} tuned baselines came with lopax (--no-shipped to tune them)")
    for task, why in found.summary.left_out.items():
        say(f"left out: {task}: {why}")
    if found.report is not None:
        say(f"report: {found.report.html}")
