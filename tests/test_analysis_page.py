"""`lopax explain`, and the reproduction whose GRU it can take apart."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lopax import analysis, meta, save_theta
from lopax._core.errors import NotApplicable
from lopax._core.task import SingleTask
from lopax.analysis import explain as explaining
from lopax.analysis.sections import start
from lopax.architectures import architecture
from lopax.cli.main import main
from lopax.nets import dense_mlp
from lopax.reproductions import mechanisms, mechanisms_measures
from lopax.reproductions.cases import Case, CaseResults, Measured
from lopax.tasks import RotatedQuadratics, task

QUICK = ["--num-steps", "20", "--seeds", "1", "--task", "digits_mlp_32"]


def page_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    # Nothing is fetched: no address outside of the SVG's name spaces, no script.
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert not re.search(r"https?://|<script|<link|@import|url\((?!#)", outside)
    assert "currentColor" in text and "#010203" not in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    return text


def test_the_bundled_weights_are_explained(tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["explain", "celo_adam", *QUICK, "--out", str(target)]) == 0
    text = page_of(target)
    shown = capsys.readouterr()
    assert "[1/4] direction" in shown.err and str(target) in shown.out
    for title in ("Where it goes", "When it takes large steps", "What rescaling does"):
        assert title in text
    assert "Feature importance needs a per-element network" in text
    assert "lopax explain celo_adam" in text
    # Celo-Adam's direction is Adam's.
    assert re.search(r"where Adam would go \(mean cosine (0\.9\d|1\.00)\)", shown.out)
    assert not list(tmp_path.glob(".page*"))


def test_what_was_learned_on_top_of_a_hand_made_optimizer(tmp_path):
    """Told against theta = 0, exactly, and trained without one part after the other."""
    rule = architecture("learned_muon", network=False, outputs=True)
    theta = rule.init_theta(jax.random.key(0))
    for sizes in analysis.against_start(rule, theta).sizes.values():
        np.testing.assert_allclose(sizes, 1.0)
    theta["size"] = np.log(np.array([2.0, 0.5, 3.0], np.float32))
    theta["signal"] = np.array([1.0, 0.0], np.float32)
    theta["momenta"]["slope"] = np.array([0.2, 0.0, -0.1], np.float32)
    found = analysis.against_start(rule, theta, confirmed=-0.5)
    for role, size in zip(found.sizes, (2.0, 0.5, 3.0), strict=True):
        np.testing.assert_allclose(found.sizes[role], size * np.exp(0.5), rtol=0.01)
    np.testing.assert_allclose(found.hand_made, [0.05, 0.95, 0.0], atol=1e-6)
    last = found.hand_made + found.fractions[-1] * np.array([0.2, 0.0, -0.1])
    np.testing.assert_allclose(found.weights[-1], last, atol=1e-5)

    single = task("digits_mlp_32")
    given = single, "digits", SingleTask(single), 20, (0,)
    section = start.learned(explaining.Subject(rule, theta, *given))
    assert section.grid is not None
    parts = [row[0] for row in section.grid.rows]
    assert parts == ["all of theta", "size", "momenta", "signal"]
    assert "2.00, 2.00 and 2.00 for matrices" in section.text[0]
    celo = architecture("celo_adam")
    with pytest.raises(NotApplicable, match="learned_muon"):
        analysis.against_start(celo, celo.init_theta(jax.random.key(0)))


def test_per_element_networks_have_a_section(tmp_path, monkeypatch):
    """Only that section; the others are the same as for other rules."""
    own = [a for a in explaining.ANALYSES if a.name == "feature importance"]
    monkeypatch.setattr(explaining, "ANALYSES", tuple(own))
    monkeypatch.setattr(dense_mlp, "UNROLLED_UP_TO", 0)  # compiles sooner
    rule = architecture("adafac_mlp")
    theta = rule.init_theta(jax.random.key(0))
    found = explaining.explain(
        rule,
        theta,
        name="rule <new>",
        task_name="digits_mlp_32",
        runs=explaining.Runs(20, (0,)),
    )
    (section,) = found.sections
    assert section.grid is not None and len(section.grid.rows) == 13
    text = page_of(explaining.write_page(found, tmp_path / "page.html"))
    assert "rule &lt;new&gt;" in text and "factored root second moment" in text


def test_a_recurrent_rule_is_taken_apart(tmp_path, monkeypatch):
    rule = architecture("l2o_gru", units=6)
    theta = rule.init_theta(jax.random.key(0))
    theta["head"]["w"] = -0.05 * jax.random.normal(jax.random.key(1), (6, 1))
    path = tmp_path / "gru.safetensors"
    save_theta(path, theta, rule)
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(path), "--num-steps", "20", "--seeds", "1"]) == 0
    text = page_of(tmp_path / "explain-l2o_gru-gru.html")
    for title in ("remembers", "momentum", "clipping", "schedule", "adaptation"):
        assert re.search(rf"<h2[^>]*>(What it|Its) {title}</h2>", text), title
    assert "random quadratics" in text


def test_bad_input_is_one_line_and_exit_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = {
        ("celo_adm",): "celo_adam",
        ("missing.safetensors",): "no file at",
        ("celo_adam", "--task", "digits_mpl_32"): "digits_mlp_32",
        ("celo_adam", "--num-steps", "3"): "num_steps = 3",
        ("celo_adam", "--seeds", "0"): "--seeds 0",
        ("celo_adam", "--architecture", "celo"): "are for architecture 'celo_adam'",
    }
    for arguments, said in cases.items():
        assert main(["explain", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


SMALL = {
    **mechanisms_measures.SETTINGS,
    "units": 4,
    "unroll": 12,
    "outer_steps": 20,
    "particles": 4,
    "test_problems": 8,
    "starts": 8,
    "grid_alpha": [0.5, 1.0],
    "grid_beta": [0.5],
}


def test_the_mechanisms_are_measured(tmp_path):
    """A shortened run: all measures are there, and meta-training has moved theta."""
    said: list[str] = []
    case = Case(0, 1.0, SMALL, tmp_path, said.append)
    found = mechanisms_measures.gru(case)
    assert 0.0 < found.values["objective"] < 1.0 and said
    assert len(found.curves["loss / first loss"]) == 12
    assert found.curves["loss / first loss"][0] == pytest.approx(1.0)
    losses = [
        line["loss"] for line in meta.read_log(tmp_path / "run" / "metrics.jsonl")
    ]
    assert losses[-1] < losses[0]
    weights = tmp_path / "run" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    again = mechanisms_measures.gru(case)
    np.testing.assert_allclose(again.values["objective"], found.values["objective"])
    assert weights.stat().st_mtime_ns == before
    plain = mechanisms_measures.gradient_descent(case).values["objective"]
    momentum = mechanisms_measures.heavy_ball(case).values
    assert momentum["objective"] < plain < 1.0
    assert momentum["best of a grid"] > 0.0


def test_the_rule_can_fail_in_every_part():
    good = {
        "objective": 0.15,
        "components for 90 %": 4,
        "fixed points": 2,
        "smallest Q": 1e-9,
        "largest real eigenvalue < 1": 0.95,
        "size of u(3) / u(1.5)": 1.1,
    }
    bad = {
        "objective": 0.25,
        "components for 90 %": 7,
        "fixed points": 0,
        "largest real eigenvalue < 1": 0.86,
        "size of u(3) / u(1.5)": float("nan"),
    }

    def verdicts(**changed):
        rows = [Measured(good), Measured({**good, **changed})]
        base = [Measured({"objective": 0.3})] * 2
        ball = [Measured({"objective": 0.05, "best of a grid": 0.08})] * 2
        measured = {"GRU": rows, "gradient descent": base, "heavy ball": ball}
        return [c.passed for c in mechanisms.judge(CaseResults(measured=measured))]

    assert all(verdicts())
    for i, (name, value) in enumerate(bad.items()):
        assert not verdicts(**{name: value})[i], name


def test_the_recipe_is_the_described_one():
    run = mechanisms_measures.recipe(mechanisms_measures.SETTINGS, 800, 1)
    assert run.total_steps == 800 and run.estimator.horizon_high == 201
    assert run.outer.eps == 0.1 and run.outer.clip_value == 5.0
    family = mechanisms_measures._family(mechanisms_measures.SETTINGS)
    assert family == RotatedQuadratics(dimension=5, low=1e-3, high=1.0)
