"""Summaries, verdicts, figures and pages of a made-up study with known results."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluate_study import fake_study

from lopax._core.errors import ConfigError, IncompleteResults
from lopax.evaluate.report import plots, style
from lopax.evaluate.report.pages import render_html, render_markdown, write_report
from lopax.evaluate.results.failures import failure_map
from lopax.evaluate.results.summary import summarise
from lopax.statistics.aggregate import Interval
from lopax.statistics.significance import PairedTest
from lopax.statistics.verdict import verdict


@pytest.fixture(scope="module")
def summary():
    return summarise(fake_study())


@pytest.fixture(scope="module")
def page(summary):
    study = summary.study
    problems = [
        dataclasses.replace(p, passes_below=0.6 * (i + 1))
        for i, p in enumerate(study.problems)
    ]
    stress = failure_map(dataclasses.replace(study, problems=tuple(problems)))
    return render_html(
        summary,
        command="lopax bench <here> & there",
        failures=stress,
        notes=["A note."],
    )


# ---- summary


def test_the_summary_finds_what_was_put_in(summary):
    celo, adam, lion = (summary.row(n) for n in ("celo", "adam", "lion"))
    assert 1.2 < celo.iqm.value < 1.3
    assert celo.iqm.low > 1.0
    assert abs(adam.iqm.value - 1.0) < 0.05
    assert lion.verdict == "worse than tuned adam"
    assert adam.verdict == "the reference"
    assert summary.optimizers[0] == "celo"
    assert (celo.runs, celo.budget, lion.budget) == (12, 1, 15)


def test_divergence_is_counted_and_scores_zero(summary):
    entry = summary.entries["celo", "task_3"]
    np.testing.assert_array_equal(entry.diverged, [False, False, True])
    assert entry.score[2] == 0.0
    assert np.isinf(entry.final[2])
    assert np.isinf(entry.steps[2])
    assert entry.speedup[2] == 0.0
    assert np.isinf(entry.held_out.valid[2])
    assert entry.nonfinite[2] == 50
    assert summary.row("celo").diverged == 1
    assert "1 of 12 runs diverged" in summary.row("celo").verdict


def test_baselines_are_shown_at_their_best_rate(summary):
    entry = summary.entries["lion", "task_0"]
    assert entry.rate == 0.01
    assert np.isinf(entry.tuned.final[-2:]).all()
    assert summary.entries["celo", "task_0"].rate is None


def test_holes_are_refused_or_left_out_visibly():
    study = fake_study(tasks=2, holes=True)
    with pytest.raises(IncompleteResults, match="sgdm on task_0, seed 1"):
        summarise(study)
    partial = summarise(study, allow_missing=True)
    assert partial.scored == ("task_1",)
    assert list(partial.left_out) == ["task_0"]
    assert all(row.runs == 3 for row in partial.rows)
    html = render_html(partial)
    text = render_markdown(partial)
    for shown in ("Missing: 1 of 24 runs", "Left out: task_0", "not run"):
        assert shown in html
        assert shown in text


def test_losses_at_zero_are_left_out_with_a_reason():
    study = fake_study()
    study.groups["lion", "task_1"].train[:] = 0.0
    study.groups["lion", "task_1"].diverged[:] = False
    found = summarise(study)
    assert "ratio of losses means nothing" in found.left_out["task_1"]
    assert "task_1" not in found.scored
    assert "undefined" in render_markdown(found)


def test_a_reference_that_diverges_everywhere_is_left_out_with_a_reason():
    study = fake_study()
    cell = study.groups["adam", "task_2"]
    cell.train[..., -1] = np.nan
    cell.diverged[:] = True
    found = summarise(study)
    assert "diverged at every learning rate" in found.left_out["task_2"]
    plots.training_curves(found, "task_2", plots.colours(found))
    study.groups["lion", "task_2"].diverged[:] = True
    study.groups["sgdm", "task_2"].diverged[:] = True
    gone = summarise(study)  # every tuned run diverged: nothing to draw but lines
    figure = plots.rate_sensitivity(gone, "task_2", plots.colours(gone))
    assert "learning rate" in style.svg(figure, "rates")
    text = render_markdown(found)
    assert "| task_2 (not scored) | undefined (no ratio) |" in text
    assert "| task_2 | diverged | never (0 of 3 seeds) |" in text
    for name in ("task_0", "task_1", "task_3"):
        study.groups["adam", name].diverged[:] = True
    with pytest.raises(IncompleteResults, match="no task can be scored"):
        summarise(study)


def test_losses_that_are_all_but_fitted_are_pointed_out_once():
    study = fake_study(2, 2, ("adam",))
    assert "all but fitted" not in render_markdown(summarise(study))
    for task in study.tasks:
        for name in ("celo", "adam"):
            study.groups[name, task].train[..., 50:] *= 0.01
    text = render_markdown(summarise(study))
    assert text.count("all but fitted") == 1
    assert "of the initial loss on task_0, task_1:" in text


def test_an_unknown_reference_is_refused():
    with pytest.raises(ConfigError, match="'sgd' is not in the study"):
        summarise(fake_study(), "sgd")


def verdict_of(
    low, high, p=0.01, effect=0.1, seeds=3, needed: int | None = 5, diverged=0
):
    test = PairedTest(effect, p, 0.5, 3, 4, seeds, needed)
    interval = Interval((low + high) / 2, low, high)
    return verdict(interval, test, diverged, 12, "adam")


def test_verdicts():
    assert verdict_of(1.1, 1.2) == "better than tuned adam"
    assert verdict_of(0.7, 0.9, effect=-0.1) == "worse than tuned adam"
    assert "the other way by the mean" in verdict_of(1.1, 1.2, effect=-0.1)
    assert "not by the paired test (p = 0.30)" in verdict_of(1.1, 1.2, p=0.3)
    few = PairedTest(0.1, 0.25, 1.0, 1, 1, 3, 2)
    assert verdict(Interval(1.2, 1.1, 1.3), few, 0, 3, "adam") == (
        "better than tuned adam by IQM, too few runs for a test"
    )
    assert verdict_of(0.9, 1.2, p=0.5, needed=40) == (
        "no clear difference from tuned adam; about 40 seeds would settle it"
    )
    assert verdict_of(0.9, 1.2, needed=None) == "no clear difference from tuned adam"
    assert verdict_of(1.1, 1.2, seeds=1).startswith("one seed: better on 3 of 4")
    assert verdict_of(1.1, 1.2, diverged=2).endswith("; 2 of 12 runs diverged")


def test_failure_map():
    study = fake_study(tasks=2, baselines=("adam",))
    problems = (
        dataclasses.replace(study.problems[0], passes_below=0.45),
        dataclasses.replace(study.problems[1], passes_below=1.2),
    )
    found = failure_map(dataclasses.replace(study, problems=problems))
    # Celo's floors are 0.4 and 0.8 (one seed of three diverges), Adam's 0.5 and 1.0.
    np.testing.assert_allclose(found.solved, [[1.0, 2 / 3], [0.0, 1.0]])
    assert found.rates[1, 1] >= 1
    assert found.texts()[0] == ["100%", "67%"]
    assert found.texts()[1] == ["0/15", f"{found.rates[1, 1]}/15"]
    with pytest.raises(ConfigError, match="passes_below"):
        failure_map(study)


# ---- pages


class Checker(HTMLParser):
    """Collects tags, links and unbalanced elements."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.problems = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)


def test_the_page_is_well_formed_and_asks_for_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert checker.problems == []
    assert checker.open == []
    assert not {"script", "link", "iframe", "img"} & set(checker.tags)
    assert all(source.startswith("#") for source in checker.sources)
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {
        f"#{i}" for i in re.findall(r'id="([^"]+)"', page)
    }
    outside = set(re.findall(r'https?://[^\s"<]+', page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_it_must(page, summary):
    for row in summary.rows:
        assert f"{row.iqm.value:.3f}" in page
        assert row.optimizer in page
    for text in (
        "0123456789ab",  # weights
        "lopax bench &lt;here&gt; &amp; there",  # the command, escaped
        "1 of 3 diverged",
        "A note.",
        "Failure map",
        "15: 1e-07 to 1",  # the budget
        "prefers-color-scheme: dark",
        "@media print",
        'name="viewport"',
    ):
        assert text in page
    assert style.INK not in page


def test_a_hostile_name_is_escaped():
    study = fake_study(1, 2, ("adam",))
    problems = tuple(
        dataclasses.replace(p, note="<script>alert(1)</script>") for p in study.problems
    )
    page = render_html(summarise(dataclasses.replace(study, problems=problems)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_markdown_tables_are_rectangular(summary):
    text = render_markdown(summary, command="lopax bench")
    tables = [t.splitlines() for t in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(tables) >= 5
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table[:2]
    assert "\n\n\n" not in text


def test_the_report_is_written_and_reproducible(tmp_path):
    summary = summarise(fake_study(1, 2, ("adam",)))
    a = write_report(tmp_path / "a", summary, command="x")
    b = write_report(tmp_path / "b", summary, command="x")
    assert a.html.read_bytes() == b.html.read_bytes()
    assert a.markdown.read_text().startswith("# A made-up study\n")


# ---- figures


def test_figures_are_valid_svg_in_the_colour_of_the_page(summary):
    palette = plots.colours(summary)
    figure = plots.training_curves(summary, "task_0", palette)
    text = style.svg(figure, "curves")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "currentColor" in text
    assert style.INK not in text
    words = "".join(root.itertext())
    assert "updates" in words
    assert "training loss" in words


def test_diverged_baselines_do_not_spoil_the_scale(summary):
    palette = plots.colours(summary)
    axes = plots.rate_sensitivity(summary, "task_0", palette).axes[0]
    low, high = axes.get_ylim()
    assert 0.2 < low < high < 4.0


def test_colours_follow_the_learned_optimizers_first(summary):
    palette = plots.colours(summary)
    assert palette["celo"] == style.PALETTE[0]
    assert palette["adam"] == style.INK
    crowd = tuple(
        f for f in ("adam", "sgd", "sgdm", "adamw", "rmsprop", "lamb", "yogi")
    )
    many = plots.colours(summarise(fake_study(2, 1, (*crowd, "lion", "lars", "radam"))))
    assert list(many.values()).count(style.FADED) == 2


def test_plotting_changes_no_global_state():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import lopax.evaluate as ev\n"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        "from evaluate_study import fake_study\n"
        "ev.render_html(ev.summarise(fake_study(1, 2, ('adam',))))\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
