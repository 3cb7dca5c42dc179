"""Numbers of a report as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lopax.statistics.aggregate import Interval

NEVER = "never"


def interval_text(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def points(interval: Interval) -> str:
    """Differences, with their signs."""
    return f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def span(values: Sequence[float], digits: int = 4) -> str:
    """ "0.1 to 0.3", or one number if they are all the same."""
    ends = [f"{v:.{digits}g}" for v in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def number(value: float) -> str:
    """Four significant digits; words for what is not a number."""
    if math.isinf(value) or math.isnan(value):
        return "diverged"
    return f"{value:.4g}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
