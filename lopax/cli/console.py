"""What the terminal shows: tables and progress; plain lines when piped."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lopax.cli import stdio
from lopax.meta.loop import Progress as TrainProgress


def console() -> Console:
    return Console(soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: tab-separated lines if the output is not a terminal, with --json
    an object for each row."""
    if stdio.JSON.get():
        for row in rows:
            print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False))
        return
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(row))
        return
    shown = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console().print(shown)


class TrainingDisplay:
    """Progress of a meta-training run: a live bar, or a line now and then."""

    def __init__(self, total: int, done: int = 0, every: float = 15.0):
        self._live = stdio.live()
        self._total, self._first = total, done
        self._every, self._last = every, 0.0
        self._speed = self._seen = 0.0
        self._bar = Progress(
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(
            "", total=total, completed=done, phase="compiling", metrics=""
        )

    def __enter__(self) -> TrainingDisplay:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()

    def __call__(self, p: TrainProgress) -> None:
        """Shows one report."""
        self._measure(p)
        log = p.metrics
        text = f"loss {log['loss']:.3f}  "
        if "grad_norm" in log:
            text += f"|grad| {log['grad_norm']:.2f}  "
        else:  # a search
            text += f"spread {log['spread']:.3f}  moved {log['moved']:.3f}  "
        text += f"{self._speed:,.0f} inner steps/s"
        if "lost" in log:  # a population
            text = f"best {log['best']:.3f}  lost {log['lost']:.0f}  {text}"
        if self._live:
            self._bar.update(self._task, completed=p.step, phase=p.phase, metrics=text)
        elif time.monotonic() - self._last > self._every or p.step == p.total:
            self._last = time.monotonic()
            made = max(p.step - self._first, 1)
            left = p.seconds / made * (p.total - p.step)
            stdio.note(
                f"{p.phase} {p.step}/{p.total}  {text}  {p.seconds:.0f} s, "
                f"{left:.0f} s left"
            )

    def _measure(self, p: TrainProgress) -> None:
        """Inner steps per second since the last report, smoothed."""
        now = p.metrics["inner_steps"] / max(p.seconds - self._seen, 1e-9)
        self._speed = now if self._seen == 0.0 else 0.7 * self._speed + 0.3 * now
        self._seen = p.seconds
