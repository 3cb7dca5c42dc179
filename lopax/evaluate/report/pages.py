"""The report: one self-contained HTML file, and the same in Markdown.

All numbers come from a `Summary`; `report_text` turns them into words. The page makes
no request to anywhere: figures are inlined SVG, styles are in the file, there is no
script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lopax._core.atomic import atomic_write, make_folder
from lopax._core.errors import MissingExtra
from lopax.evaluate.report import plots, style
from lopax.evaluate.report.heatmap import heatmap
from lopax.evaluate.report.text import report_context
from lopax.evaluate.results.failures import FailureMap
from lopax.evaluate.results.seconds import step_seconds
from lopax.evaluate.results.summary import Summary

BROAD = 24  # more tasks than this and single-task figures are left out


class Paths(NamedTuple):
    """Files a report consists of."""

    html: Path
    markdown: Path


def write_report(
    folder: str | os.PathLike[str],
    summary: Summary,
    *,
    command: str = "",
    failures: FailureMap | None = None,
    notes: Sequence[str] = (),
) -> Paths:
    """Writes `report.html` and `report.md` into `folder`.

    **Arguments:**

    - `command`: what to type to get this report again; shown at its end.
    - `failures`: a failure map to include.
    - `notes`: paragraphs for the top of the page (data that were substituted).

    Raises `MissingExtra` if jinja2 or matplotlib is not installed.
    """
    folder = make_folder(folder)
    paths = Paths(folder / "report.html", folder / "report.md")
    options = {"command": command, "failures": failures, "notes": notes}
    write_page(paths.html, render_html(summary, **options))
    write_page(paths.markdown, render_markdown(summary, **options))
    return paths


def write_page(path: Path, text: str) -> None:
    """Writes a page whole or not at all; what is no Unicode (a file name of another
    encoding) becomes a question mark."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def render_html(summary: Summary, **options: Any) -> str:
    """The HTML page; options as for `write_report`."""
    palette = plots.colours(summary)
    context = report_context(summary, **options)
    context["colours"] = {
        name: "currentColor" if colour == style.INK else colour
        for name, colour in palette.items()
    }
    context["legend"] = [n for n in summary.optimizers if palette[n] != style.FADED]
    context["faded"] = [n for n in summary.optimizers if palette[n] == style.FADED]
    context["figures"] = _figures(summary, palette, options.get("failures"))
    return template("report.html.jinja", escape=True).render(context)


def render_markdown(summary: Summary, **options: Any) -> str:
    """The Markdown page; options as for `write_report`."""
    from markupsafe import Markup

    context = report_context(summary, **options)
    context["command"] = Markup(context["command"].replace("\n", " "))  # a code block
    return template("report.md.jinja", escape=False).render(context)


def template(name: str, escape: bool, package: str = "lopax.evaluate.report") -> Any:
    """A jinja2 template of a package, which may include ours; raises `MissingExtra`
    without jinja2."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtra("jinja2", "report", "writing a report") from None
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader(p)
                for p in dict.fromkeys((package, "lopax.evaluate.report"))
            ]
        ),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        finalize=None if escape else _markdown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _markdown(value: Any) -> Any:
    """Text in which nothing is read as Markdown, HTML or the end of a table's cell."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = re.sub(r"([\\|<`*\[$])", r"\\\1", value)
    return text.replace("\n", " ")


def _figures(
    summary: Summary, palette: Mapping[str, str], failures: FailureMap | None
) -> dict[str, Any]:
    from markupsafe import Markup

    def draw(figure: Any, name: str) -> Any:
        return Markup(style.svg(figure, name))

    iqm = {r.optimizer: r.iqm for r in summary.rows}
    speedup = {r.optimizer: r.speedup for r in summary.rows}
    figures: dict[str, Any] = {
        "iqm": draw(
            plots.interval_bars(iqm, palette, "final-loss score, IQM", 1.0),
            "Final-loss score by optimizer",
        ),
        "speedup": draw(
            plots.interval_bars(speedup, palette, "speed-up, IQM", 1.0),
            "Speed-up by optimizer",
        ),
        "profile": draw(
            plots.performance_profiles(summary, palette), "Performance profiles"
        ),
        "time": draw(plots.time_profiles(summary, palette), "Time to target"),
        "curves": [],
        "clock": [],
        "rates": [],
    }
    tuned = any(s.tunable for s in summary.study.optimizers)
    shown = [t for t in summary.study.tasks if t in summary.target][:BROAD]
    for task in shown:
        figure = plots.training_curves(summary, task, palette)
        figures["curves"].append((task, draw(figure, f"Training curves: {task}")))
        timed = {
            name: step
            for name in summary.optimizers
            if (step := step_seconds(summary.study, name, task, summary.reference))
        }
        if timed:
            figure = plots.training_curves(summary, task, palette, timed)
            figures["clock"].append((task, draw(figure, f"Loss against time: {task}")))
        if tuned:
            figure = plots.rate_sensitivity(summary, task, palette)
            figures["rates"].append((task, draw(figure, f"Learning rates: {task}")))
    if failures is not None:
        figure = heatmap(
            failures.solved, failures.optimizers, failures.problems, failures.texts()
        )
        figures["failures"] = draw(figure, "Failure map")
    return figures
