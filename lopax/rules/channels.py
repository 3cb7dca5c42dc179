"""What a per-element network sees: named groups of channels, in the published order.

The one table of them. JAX's and torch's plain rules, the C core and the Triton kernels
compute what is written here, and the documentation is made from it. Every channel is a
product of *terms*, quantities of one tensor after its accumulators were updated with
the current gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

TERMS: dict[str, tuple[int, str]] = {
    "grad": (1, "gradient, clipped as the rule says"),
    "clipped_grad": (1, "gradient clipped to +-0.1"),
    "param": (1, "parameter"),
    "momenta": (3, "momenta"),
    "second": (1, "second moment"),
    "rsqrt": (1, "1 / sqrt(second moment + epsilon)"),
    "factor": (3, "1 / sqrt(factored second moment)"),
    "momenta_factor": (3, "the same for momenta; a vector's has its own epsilon"),
    "row": (3, "second moment by row"),
    "col": (3, "second moment by column"),
    "row_rsqrt": (3, "1 / sqrt(row + 1e-8)"),
    "col_rsqrt": (3, "1 / sqrt(col + 1e-8)"),
}
"""By name: how many arrays (one per decay), and what they are."""

ELEMENT, ROW, COL = "element", "row", "col"
CLIP = 0.1
"""Bound of the term `clipped_grad`."""
LINE_EPS = 1e-8
"""Added to a row's or a column's moment under the root."""


class Group(NamedTuple):
    """Some channels that belong together."""

    name: str
    width: int
    terms: tuple[str, ...]  # whose product they are
    meaning: str
    over: str = ELEMENT  # what has a value of its own: every element, row or column

    def of(self, view: Any) -> Any:
        """The channels, from a view with the terms as attributes."""
        product = getattr(view, self.terms[0])
        for term in self.terms[1:]:
            product = product * getattr(view, term)
        return product


GROUPS: dict[str, Group] = {
    g.name: g
    for g in (
        Group("grad", 1, ("grad",), "gradient"),
        Group("clipped_grad", 1, ("clipped_grad",), "gradient clipped to +-0.1"),
        Group("param", 1, ("param",), "parameter"),
        Group("momenta", 3, ("momenta",), "momenta"),
        Group("second", 1, ("second",), "second moment"),
        Group("adam", 3, ("momenta", "rsqrt"), "momenta over root second moment"),
        Group("rsqrt", 1, ("rsqrt",), "1 / root second moment"),
        Group(
            "factored_grad",
            3,
            ("grad", "factor"),
            "gradient over factored root second moment",
        ),
        Group("rms_grad", 1, ("grad", "rsqrt"), "gradient over root second moment"),
        Group("row", 3, ("row",), "row second moment", ROW),
        Group("col", 3, ("col",), "column second moment", COL),
        Group("row_rsqrt", 3, ("row_rsqrt",), "1 / root row second moment", ROW),
        Group("col_rsqrt", 3, ("col_rsqrt",), "1 / root column second moment", COL),
        Group(
            "factored_momenta",
            3,
            ("momenta", "momenta_factor"),
            "momenta over factored root second moment",
        ),
    )
}
"""By name, in the published order: the 30 channels of VeLO, Celo and Celo2 (Metz et
al., 2022, arXiv 2211.09760; Moudgil et al., 2025, arXiv 2501.12670)."""

VELO = tuple(GROUPS)
ADAFAC = tuple(n for n in VELO if n not in ("clipped_grad", "rms_grad"))
"""The 28 channels of Adafac-MLP and STAR (Metz et al., 2022, arXiv 2203.11860; Harrison
et al., 2022, arXiv 2209.11208)."""
CELO2_VECTOR = VELO[:9]
"""The first 15 channels, which need neither rows nor columns (Moudgil et al., 2026,
arXiv 2602.19142)."""


def count(names: Sequence[str]) -> int:
    """Number of channels."""
    return sum(GROUPS[name].width for name in names)


def places(of: Sequence[str], among: Sequence[str] = VELO) -> tuple[int, ...]:
    """Which of the channels of the groups `among` those of the groups `of` are."""
    first, at = {}, 0
    for name in among:
        first[name], at = at, at + GROUPS[name].width
    return tuple(first[n] + i for n in of for i in range(GROUPS[n].width))
