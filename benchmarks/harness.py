"""What the benchmarks share: paired timing, a table, JSON lines, the exit code."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lopax import evaluate
from lopax.statistics import scores
from lopax.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a benchmark."""

    benchmark: str
    case: str
    metric: str
    value: float
    reference: float | None = None
    ratio: float | None = None
    target: float | None = None
    ok: bool = True


def settings_of(spec: str) -> tuple[str, dict[str, Any]]:
    """`celo2:orthogonalizer=auto` as a rule's name and its settings."""
    name, *parts = spec.split(":")
    settings: dict[str, Any] = {}
    for key, _, value in (part.partition("=") for part in parts):
        try:
            settings[key] = json.loads(value.lower())  # a number, true, false
        except ValueError:
            settings[key] = value
    return name, settings


def period_of(spec: str) -> int:
    """After so many steps a rule's cost is what it was."""
    return settings_of(spec)[1].get("orthogonalize_every", 1)


Clock = Callable[[], float]


def seconds(fn: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    """Time of one call, outputs awaited: wall-clock, or by another clock."""
    started = clock()
    jax.block_until_ready(fn())
    return clock() - started


def paired(
    fn: Callable[[], Any],
    reference: Callable[[], Any],
    rounds: int,
    clock: Clock = time.perf_counter,
) -> tuple[float, float, float]:
    """Median times of both, and the median of the per-round ratios.

    The two are called in turn, so that a change of the machine's speed hits both.
    """
    jax.block_until_ready((fn(), reference()))  # or the first pair would wait for them
    pairs = [(seconds(fn, clock), seconds(reference, clock)) for _ in range(rounds)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def final_losses(
    spec: evaluate.OptimizerSpec, task: Task, num_steps: int, seeds: Iterable[int]
) -> np.ndarray:
    """Final smoothed training loss [seeds] at the best learning rate."""
    config = evaluate.RunConfig(
        num_steps=num_steps, eval_every=num_steps, eval_batches=1, final_batches=1
    )
    found = evaluate.run(spec, task, config, list(seeds), vmap_size=6)
    losses = scores.final_loss(found.train, found.diverged)
    return losses[:, np.argmin(losses.mean(axis=0))]


def finish(results: Sequence[Result]) -> int:
    """Prints the table and the JSON lines; 1 if a target is missed."""
    columns = ("case", "metric", "value", "reference", "ratio", "target", "ok")
    rows = [columns] + [tuple(_text(getattr(r, c)) for c in columns) for r in results]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip())
    print()
    for r in results:
        print(json.dumps(dataclasses.asdict(r)))
    return 0 if all(r.ok for r in results) else 1


def _text(x: Any) -> str:
    if x is None:
        return ""
    return f"{x:.4g}" if isinstance(x, float) else str(x)
