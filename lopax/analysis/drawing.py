"""Figures of analyses, in the style of the reports (`lopax.evaluate.report.style`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax.evaluate.report.style import FADED, INK, PALETTE, panel, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(
    x: ArrayLike,
    lines: Mapping[str, ArrayLike],
    xlabel: str,
    ylabel: str,
    *,
    log: str = "",
    zero: bool = False,
    points: int = 400,
) -> Figure:
    """Lines over one axis, with a legend if there are several.

    **Arguments:**

    - `log`: which axes are logarithmic, "x", "y" or "xy".
    - `zero`: draw the horizontal through zero.
    """
    figure, axes = panel()
    x = np.asarray(x, np.float64)
    step = max(1, len(x) // points)
    for i, (name, y) in enumerate(lines.items()):
        y = np.asarray(y, np.float64)
        axes.plot(
            x[::step],
            y[::step],
            color=PALETTE[i % len(PALETTE)],
            linewidth=1.6,
            linestyle="-" if i < len(PALETTE) else "--",
            label=plain(name),
        )
    if zero:
        axes.axhline(0.0, color=INK, linewidth=0.6)
    for name in log:
        _logarithmic(axes, name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(lines) > 1:
        _legend_below(figure, axes)
    return figure


def bundle(
    x: ArrayLike, lines: ArrayLike, xlabel: str, ylabel: str, mean: ArrayLike
) -> Figure:
    """Many faint lines [L, X] and a strong one."""
    figure, axes = panel()
    for line in np.asarray(lines, np.float64):
        axes.plot(x, line, color=FADED, linewidth=0.7, alpha=0.6)
    axes.plot(x, mean, color=PALETTE[0], linewidth=1.8)
    axes.axhline(0.0, color=INK, linewidth=0.5)
    axes.axvline(0.0, color=INK, linewidth=0.5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure


def bars(
    names: Sequence[str],
    values: ArrayLike,
    xlabel: str,
    *,
    reference: float = 0.0,
) -> Figure:
    """Horizontal bars from `reference`, the first name on top; values that are not
    finite reach as far as the largest and say so. Ratios (a reference above zero) over
    a wide range get a logarithmic axis."""
    figure, axes = panel(height=0.7 + 0.2 * len(names))
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    edge = float(finite.max()) if finite.size else reference + 1.0
    shown = np.where(np.isfinite(values), values, edge)
    rows = np.arange(len(names))[::-1]
    colours = [PALETTE[0] if np.isfinite(v) else PALETTE[-1] for v in values]
    axes.barh(rows, shown - reference, left=reference, height=0.62, color=colours)
    for row, value, at in zip(rows, values, shown, strict=True):
        if not np.isfinite(value):
            axes.text(at, row, " diverged", va="center", fontsize=7.5, color=INK)
    axes.axvline(reference, color=INK, linewidth=0.6)
    if reference > 0 and finite.size and finite.max() / finite.min() > 3:
        _logarithmic(axes, "x")
    axes.set_yticks(rows, list(map(plain, names)))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    return figure


def complex_plane(values: NDArray[np.complex128]) -> Figure:
    """Eigenvalues and the unit circle."""
    figure, axes = panel(width=3.6, height=3.4)
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=FADED, linewidth=0.8)
    axes.plot(values.real, values.imag, "o", color=PALETTE[0], markersize=4, alpha=0.8)
    axes.set_aspect("equal")
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    return figure


def plane(
    paths: NDArray[np.float64], marks: NDArray[np.float64], labels: tuple[str, str]
) -> Figure:
    """Paths [L, T, 2] in a plane, faint, and marked points [P, 2]."""
    figure, axes = panel()
    for path in paths:
        axes.plot(path[:, 0], path[:, 1], color=PALETTE[0], linewidth=0.5, alpha=0.35)
    if len(marks):
        axes.plot(
            marks[:, 0], marks[:, 1], "x", color=PALETTE[1], markersize=7, mew=1.8
        )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure


def _logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis, "x" or "y", with few labels and no minor ones."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Under the axes, where it hides no curve."""
    count = len(axes.get_legend_handles_labels()[0])
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-count // 3))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(3, count),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1.2,
    )
