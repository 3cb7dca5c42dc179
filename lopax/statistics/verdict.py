"""A result in words."""

from __future__ import annotations

from lopax.statistics.aggregate import Interval
from lopax.statistics.significance import PairedTest


def verdict(
    iqm: Interval,
    test: PairedTest | None,
    diverged: int,
    runs: int,
    reference: str,
) -> str:
    """The result in words, no stronger than its interval and its paired test."""
    if test is None:
        return "the reference"
    sure = test.p_runs < 0.05
    if test.seeds < 2:
        words = f"one seed: better on {test.wins} of {test.tasks} tasks, no interval"
    elif iqm.low > 1.0 and sure and test.effect > 0:
        words = f"better than tuned {reference}"
    elif iqm.high < 1.0 and sure and test.effect < 0:
        words = f"worse than tuned {reference}"
    elif iqm.low > 1.0 or iqm.high < 1.0:
        side = "better" if iqm.low > 1.0 else "worse"
        words = f"{side} than tuned {reference} by IQM, "
        # Of 2^n sign patterns two are as extreme as all differences on one side.
        if 2.0 ** (1 - test.seeds * test.tasks) >= 0.05:
            words += "too few runs for a test"
        elif sure and (test.effect > 0) != (iqm.low > 1.0):
            words += "the other way by the mean: a few runs decide it"
        else:
            words += f"but not by the paired test (p = {test.p_runs:.2f})"
    else:
        words = f"no clear difference from tuned {reference}"
        if test.seeds_needed is not None and test.seeds_needed > test.seeds:
            words += f"; about {test.seeds_needed} seeds would settle it"
    if diverged:
        words += f"; {diverged} of {runs} runs diverged"
    return words
