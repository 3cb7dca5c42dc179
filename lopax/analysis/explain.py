"""Everything the analyses say about one set of weights, on one page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lopax._core.atomic import atomic_write
from lopax._core.config import check_range
from lopax._core.errors import MissingExtra
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import SingleTask
from lopax._core.tree import count_elements
from lopax._core.types import Theta
from lopax._version import __version__
from lopax.analysis.elements import has_element_net
from lopax.analysis.explanation import Explanation, Say, Section, Subject
from lopax.analysis.learned_part import has_hand_made_start
from lopax.analysis.scheduler_curves import has_scheduler
from lopax.analysis.sections import common, elements, recurrent, schedule, start
from lopax.analysis.views import is_recurrent
from lopax.tasks import RotatedQuadratics, task

QUADRATICS = "quadratics"
"""The problems coordinate-wise recurrent rules are looked at on."""

NETWORK_TASK = "digits_mlp_tanh"


class Analysis(NamedTuple):
    """One item of the list of what can be done."""

    name: str
    applies: Callable[[LearnedOptimizer], bool]
    run: Callable[[Subject], Section | list[Section]]
    otherwise: str  # why not, and what there is instead


ANALYSES = (
    Analysis("direction", lambda _: True, common.directions, ""),
    Analysis(
        "scheduler",
        has_scheduler,
        schedule.schedule,
        "Scheduler curves need Celo's learned scheduler (celo in phase 2, celo_adam); "
        "the size of this rule's steps over a run is under “Where it goes”.",
    ),
    Analysis(
        "learned part",
        has_hand_made_start,
        start.learned,
        "What was learned on top of a hand-made optimizer exists for rules that start "
        "as one (learned_muon).",
    ),
    Analysis(
        "feature importance",
        has_element_net,
        elements.features,
        "Feature importance needs a per-element network with named inputs (celo, "
        "celo2, velo, adafac_mlp, star, mulo); what this rule does with a gradient is "
        "under “What it does with one gradient”.",
    ),
    Analysis(
        "state space",
        is_recurrent,
        recurrent.dynamics,
        "Fixed points, momentum modes and state PCA need a coordinate-wise recurrent "
        "rule (l2o_gru, l2o_lstm, optim4rl, linear_optim, l2lgd2, learned_sgd): one "
        "small state per element that sees only that element's gradients.",
    ),
    Analysis(
        "one gradient",
        lambda optimizer: not is_recurrent(optimizer),
        common.response,
        "The response to one gradient was not measured along a run: for rules of this "
        "kind the update function under “Its clipping” says it exactly.",
    ),
    Analysis("rescaling", lambda _: True, common.rescaling, ""),
)


class Runs(NamedTuple):
    """How long the training runs are that are looked into."""

    num_steps: int = 300
    seeds: tuple[int, ...] = (0, 1)


def explain(
    optimizer: LearnedOptimizer,
    theta: Theta,
    *,
    name: str,
    task_name: str | None = None,
    runs: Runs | None = None,
    say: Say = lambda text: None,
) -> Explanation:
    """Runs every analysis that applies.

    **Arguments:**

    - `name`: what the page calls the weights.
    - `task_name`: a registered task, or "quadratics"; by default a held-out network
        for rules of networks and quadratics for coordinate-wise recurrent rules.
    - `say`: told a line at a time what is being done.

    Raises `ConfigError` / `UnknownName` for a bad task or fewer than 20 steps.
    """
    subject = _subject(optimizer, theta, task_name, runs or Runs())
    wanted = [a for a in ANALYSES if a.applies(optimizer)]
    left_out = [a.otherwise for a in ANALYSES if not a.applies(optimizer)]
    sections: list[Section] = []
    for i, analysis in enumerate(wanted):
        started = time.monotonic()
        found = analysis.run(subject)
        sections += found if isinstance(found, list) else [found]
        spent = time.monotonic() - started
        say(f"[{i + 1}/{len(wanted)}] {analysis.name}: {spent:.0f} s")
    facts = {
        "architecture": optimizer.name,
        "meta-parameters": f"{count_elements(theta):,}",
        "sees the loss": "yes" if optimizer.needs_loss else "no",
        "sees the horizon": "yes" if optimizer.needs_horizon else "no",
        "looked at on": subject.task_name,
        "steps a run": f"{subject.num_steps:,}",
        "source": optimizer.reference,
    }
    headlines = [s.headline for s in sections if s.headline]
    return Explanation(f"What {name} does", facts, headlines, sections, left_out)


def _subject(
    optimizer: LearnedOptimizer, theta: Theta, task_name: str | None, runs: Runs
) -> Subject:
    check_range(runs, "num_steps", low=20)
    chosen = task_name or (QUADRATICS if is_recurrent(optimizer) else NETWORK_TASK)
    if chosen == QUADRATICS:
        family: Any = RotatedQuadratics()
        single = family.task(family.sample(jax.random.key(runs.seeds[0])))
        chosen = "random quadratics"
    else:
        single = task(chosen)
        family = SingleTask(single)
    return Subject(
        optimizer, theta, single, chosen, family, runs.num_steps, tuple(runs.seeds)
    )


def write_page(
    explanation: Explanation, path: str | os.PathLike[str], command: str = ""
) -> Path:
    """Writes the page as one self-contained HTML file, atomically.

    Raises `MissingExtra` if jinja2 or matplotlib is not installed.
    """
    path = Path(path)
    page = render(explanation, command)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(explanation: Explanation, command: str = "") -> str:
    """The page; figures are inlined SVG, and nothing is fetched from anywhere."""
    try:
        from markupsafe import Markup
    except ImportError:
        raise MissingExtra("jinja2", "report", "writing a page") from None
    from lopax.evaluate.report import style
    from lopax.evaluate.report.pages import template

    def drawn(section: Section) -> Sequence[tuple[str, Any, str]]:
        found = []
        for d in section.drawings:
            text = style.svg(d.figure, f"{section.title}: {d.title}")
            found.append((d.title, Markup(text), d.caption))
        return found

    page = template("explain.html.jinja", escape=True, package="lopax.analysis")
    return page.render(
        title=explanation.title,
        facts=explanation.facts,
        headlines=explanation.headlines,
        sections=[
            {
                "title": s.title,
                "id": "".join(c for c in s.title.lower() if c.isalnum()),
                "text": s.text,
                "drawings": drawn(s),
                "grid": s.grid,
            }
            for s in explanation.sections
        ],
        left_out=explanation.left_out,
        command=command,
        version=__version__,
    )
