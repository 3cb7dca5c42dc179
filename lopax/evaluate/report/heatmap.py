"""A table of shares as colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lopax.evaluate.report.style import FADED, panel, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heatmap(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Shares in [0, 1] by row and column: 0 is warm (fails), 1 is cool (passes).

    **Arguments:**

    - `values`: [rows, columns]; NaN cells are hatched, not coloured.
    - `texts`: what to write into each cell.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    scale = LinearSegmentedColormap.from_list(
        "fails_passes", ["#c9573c", "#d9a441", "#4f9d8f"]
    )
    figure, axes = panel(width=1.6 + 0.5 * len(columns), height=1.5 + 0.28 * len(rows))
    for i in range(len(rows)):
        for j in range(len(columns)):
            value = values[i, j]
            missing = bool(np.isnan(value))
            axes.add_patch(
                Rectangle(
                    (j + 0.04, i + 0.04),
                    0.92,
                    0.92,
                    facecolor="none" if missing else scale(value),
                    edgecolor=FADED if missing else "none",
                    hatch="////" if missing else None,
                )
            )
            if texts is not None and not missing:
                axes.text(
                    j + 0.5,
                    i + 0.52,
                    plain(texts[i][j]),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="#ffffff" if value < 0.25 or value > 0.8 else "#1a1a1a",
                )
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(columns)) + 0.5, list(map(plain, columns)))
    for label in axes.get_xticklabels():
        label.set(rotation=40, rotation_mode="anchor", ha="left", va="bottom")
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(map(plain, rows)))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
