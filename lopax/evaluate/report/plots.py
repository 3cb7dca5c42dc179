"""Figures of a summary. Each function returns a `matplotlib.figure.Figure`.

Figures are small (one panel each), so that a page can lay them side by side on a
screen and below each other on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lopax.evaluate.report.style import FADED, INK, PALETTE, panel, plain
from lopax.evaluate.results.summary import Summary
from lopax.statistics.aggregate import Interval
from lopax.statistics.profiles import (
    performance_profile,
    score_thresholds,
    time_profile,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 240


def colours(summary: Summary) -> dict[str, str]:
    """A colour for each optimizer worth following: learned ones, then by score.

    The reference has the page's text colour; whoever is beyond the palette is faded.
    """
    learned = [r.optimizer for r in summary.rows if r.kind == "learned"]
    others = [r.optimizer for r in summary.rows if r.kind != "learned"]
    ranked = [n for n in learned + others if n != summary.reference]
    chosen = {name: FADED for name in ranked}
    chosen |= dict(zip(ranked, PALETTE, strict=False))
    return {**chosen, summary.reference: INK}


def training_curves(
    summary: Summary,
    task: str,
    palette: Mapping[str, str],
    step_seconds: Mapping[str, float] | None = None,
) -> Figure:
    """Smoothed training loss, mean over seeds, band from the lowest to the highest.

    `step_seconds`: of a step of each optimizer; then over seconds, and without those
    that are not in it.
    """
    figure, axes = panel()
    highest, lowest = [], []
    for name in _back_to_front(summary, palette):
        entry = summary.entries.get((name, task))
        if entry is None or (step_seconds is not None and name not in step_seconds):
            continue
        ok = ~entry.diverged
        curves = entry.curves[ok] if ok.any() else entry.curves
        index = _thin(curves.shape[1])
        drawn, steps = curves[:, index], index + 1
        if step_seconds is not None:
            steps = steps * step_seconds[name]
        with np.errstate(invalid="ignore"):
            middle = drawn.mean(axis=0)
        faded = palette[name] == FADED
        axes.plot(
            steps,
            middle,
            color=palette[name],
            linewidth=0.7 if faded else 1.6,
            alpha=0.6 if faded else 1.0,
            linestyle="--" if name == summary.reference else "-",
        )
        if not faded:
            low, high = drawn.min(axis=0), drawn.max(axis=0)
            axes.fill_between(
                steps, low, high, color=palette[name], alpha=0.18, linewidth=0
            )
            highest.append(curves[:, 0])
            lowest.append(low)
    _loss_axis(axes, _finite(highest), _finite(lowest))
    axes.set_xlabel("updates" if step_seconds is None else "seconds")
    axes.set_ylabel("training loss")
    return figure


def interval_bars(
    intervals: Mapping[str, Interval],
    palette: Mapping[str, str],
    label: str,
    reference: float | None = None,
) -> Figure:
    """One row per optimizer: the estimate and its 95 % interval."""
    names = list(intervals)[::-1]
    figure, axes = panel(height=0.55 + 0.24 * len(names))
    for row, name in enumerate(names):
        value, low, high = intervals[name]
        colour = palette[name]
        axes.plot([low, high], [row, row], color=colour, linewidth=6, alpha=0.35)
        axes.plot([value], [row], marker="o", markersize=5, color=colour)
    if reference is not None:
        axes.axvline(reference, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), list(map(plain, names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    return figure


def performance_profiles(summary: Summary, palette: Mapping[str, str]) -> Figure:
    """Share of runs above each score, with 95 % bands."""
    figure, axes = panel()
    tables = {name: summary.table("score", name) for name in summary.optimizers}
    thresholds = score_thresholds(np.concatenate(list(tables.values())))
    for name in _back_to_front(summary, palette):
        profile = performance_profile(tables[name], thresholds)
        faded = palette[name] == FADED
        axes.step(
            thresholds,
            profile.share,
            where="post",
            color=palette[name],
            linewidth=0.7 if faded else 1.6,
            alpha=0.6 if faded else 1.0,
            linestyle="--" if name == summary.reference else "-",
        )
        if not faded:
            axes.fill_between(
                thresholds,
                profile.low,
                profile.high,
                step="post",
                color=palette[name],
                alpha=0.12,
                linewidth=0,
            )
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("score s")
    axes.set_ylabel("share of runs above s")
    return figure


def time_profiles(summary: Summary, palette: Mapping[str, str]) -> Figure:
    """Share of runs that reach the target within a factor of the fastest optimizer."""
    figure, axes = panel()
    names = summary.optimizers
    steps = np.stack([summary.table("steps", name) for name in names])
    factors = np.geomspace(1.0, 16.0, 121)
    _, shares = time_profile(steps, factors)
    for name in _back_to_front(summary, palette):
        faded = palette[name] == FADED
        axes.step(
            factors,
            shares[names.index(name)],
            where="post",
            color=palette[name],
            linewidth=0.7 if faded else 1.6,
            alpha=0.6 if faded else 1.0,
            linestyle="--" if name == summary.reference else "-",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xlim(1.0, 16.0)
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("times the fastest optimizer's updates")
    axes.set_ylabel("share of runs at the target")
    return figure


def rate_sensitivity(summary: Summary, task: str, palette: Mapping[str, str]) -> Figure:
    """Final loss against learning rate; untuned optimizers are horizontal lines."""
    figure, axes = panel()
    tops, bottoms = [], []
    for name in _back_to_front(summary, palette):
        entry = summary.entries.get((name, task))
        if entry is None:
            continue
        colour, faded = palette[name], palette[name] == FADED
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": 0.7 if faded else 1.5,
            "alpha": 0.6 if faded else 1.0,
        }
        rates = summary.study.spec(name).learning_rates
        final = np.where(np.isfinite(entry.tuned.final), entry.tuned.final, np.nan)
        if rates:
            dashes = "--" if name == summary.reference else "-"
            size = 0 if faded else 2.5
            axes.plot(rates, final, marker="o", ms=size, linestyle=dashes, **style)
        elif np.isfinite(final[0]):
            axes.axhline(final[0], **style)
        start = entry.curves[:, :1]
        tops.append(start[np.isfinite(start)])
        bottoms.append(final[np.isfinite(final)])
    # Limits by hand: where every tuned run diverged, nothing drawn would set them.
    tried = [r for s in summary.study.optimizers for r in s.learning_rates]
    axes.set_xlim(min(tried, default=1e-7) / 2, max(tried, default=1.0) * 2)
    axes.set_xscale("log")
    _loss_axis(axes, _finite(tops), _finite(bottoms))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("final training loss")
    return figure


def _back_to_front(summary: Summary, palette: Mapping[str, str]) -> list[str]:
    """Faded ones first, the best of the others last, so that it lies on top."""
    names = list(summary.optimizers)[::-1]
    return sorted(names, key=lambda name: palette[name] != FADED)


def _loss_axis(axes: Axes, tops: Any, bottoms: Any) -> None:
    """Limits from where training starts to the best; log if that is a wide range."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    if not tops.size or not bottoms.size:
        return
    top, bottom = float(np.max(tops)), float(np.min(bottoms))
    if bottom > 0 and top / bottom > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom / 1.1, top * 1.15)
    elif top > bottom:
        margin = 0.05 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def _finite(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    joined = np.concatenate([np.ravel(p) for p in parts]) if parts else np.zeros(0)
    return joined[np.isfinite(joined)]


def _thin(length: int) -> NDArray[np.int64]:
    """At most `MAX_POINTS` indices, dense at the start where losses move fastest."""
    if length <= MAX_POINTS:
        return np.arange(length)
    early = np.geomspace(1, length, MAX_POINTS // 2) - 1
    even = np.linspace(0, length - 1, MAX_POINTS // 2)
    return np.unique(np.concatenate([early, even]).astype(np.int64))
