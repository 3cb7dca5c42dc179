"""How figures look, and figures as fragments of a page.

The object-oriented interface only: no pyplot, no global state, no style is changed.
`svg` turns a figure into a fragment whose text and axes take the colour of the page
around it, in the light as in the dark.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from lopax._core.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for "the page's text colour" until `svg` replaces it."""

PALETTE = (
    "#3b82c4",
    "#e07b39",
    "#2f9e6e",
    "#c2528b",
    "#8366c9",
    "#a08a1f",
    "#1f9bb0",
    "#d24b4b",
)
"""Mid-tones that stand out from white and from near-black."""

FADED = "#8a8f98"


def plain(label: str) -> str:
    """A label that matplotlib does not read as mathematics."""
    return label.replace("$", r"\$")


def svg(figure: Figure, name: str) -> str:
    """An SVG fragment for inlining into HTML.

    Text stays text (so that it can be read aloud, searched and scaled), and `INK`
    becomes `currentColor`. `name` salts the element ids: two figures of one page must
    not share them.
    """
    import matplotlib

    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _root(name), text, count=1)
    # Ids of groups repeat from figure to figure and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(INK, "currentColor").strip()


def _root(name: str) -> str:
    label = re.sub(r"[^\w .:-]", " ", name)
    return (
        r'<svg xmlns="http://www.w3.org/2000/svg" '
        r'xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{label}">'
    )


def panel(width: float = 4.4, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure with one set of axes in the report's style."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "drawing figures") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, style(figure.add_subplot())


def style(axes: Axes) -> Axes:
    """Gives axes the report's style, and returns them."""
    axes.tick_params(colors=INK, labelsize=8.5, width=0.6)
    axes.tick_params(which="minor", labelsize=7, width=0.4)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set(color=INK, linewidth=0.6)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(color=FADED, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes
