"""Seconds, not only steps: what a run's updates take on the machine that timed them.

A step's cost is measured in turn with Adam's (`lopax.evaluate.runs.cost`); a run's
seconds are its updates times that, so training and timing need not happen at the same
hour. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lopax.evaluate.results.study import Study

BUSY = 0.5
"""Other processes per core from which on a machine counts as busy."""
UNSTEADY = 0.25
"""Spread of the rounds' ratios, over their median, that is told."""


def ratio(study: Study, optimizer: str, task: str, reference: str) -> float | None:
    """Cost of a step over the reference's; None if one of them was not timed.

    Both were timed in turn with Adam; results of other programs (PyTorch) were not,
    and there it is the quotient of their milliseconds.
    """
    own, other = (_cost(study, n, task) for n in (optimizer, reference))
    if own is None or other is None or own["device"] != other["device"]:
        return None
    what = "ratio" if "ratio" in own and "ratio" in other else "step_ms"
    return float(own[what]) / float(other[what])


def step_seconds(
    study: Study, optimizer: str, task: str, reference: str
) -> float | None:
    """Seconds of a step, all optimizers of a task on one scale: the reference's
    milliseconds times the optimizer's ratio to it."""
    own = ratio(study, optimizer, task, reference)
    base = _cost(study, reference, task)
    if own is None or base is None:
        return None
    return 1e-3 * float(base["step_ms"]) * own


def in_seconds(
    study: Study,
    optimizer: str,
    reference: str,
    speedups: Mapping[str, NDArray[np.float64]],
) -> NDArray[np.float64] | None:
    """[S, tasks] speed-ups (task -> [S], in updates) divided by what a step costs; None
    if a task was not timed."""
    columns = []
    for task, values in speedups.items():
        price = ratio(study, optimizer, task, reference)
        if price is None:
            return None
        columns.append(values / price)
    return np.stack(columns, axis=1)


def conditions(study: Study) -> str | None:
    """Words about a machine that was busy while it measured; None if it was not."""
    costs = [c.cost for c in study.groups.values() if c.cost and "load" in c.cost]
    if not costs:
        return None
    load = max(float(c["load"]) for c in costs)
    spread = max(float(c["spread"]) for c in costs)
    said = []
    if load > BUSY:
        said.append(f"up to {load:.1f} other processes per core")
    if spread > UNSTEADY:
        said.append(f"ratios of one pair differ by up to {100 * spread:.0f} %")
    if not said:
        return None
    return (
        f"Costs were measured on a busy machine ({'; '.join(said)}): they are rough, "
        "and milliseconds are too high."
    )


def _cost(study: Study, optimizer: str, task: str) -> Mapping[str, Any] | None:
    group = study.groups.get((optimizer, task))
    return group.cost if group else None
