"""The machinery of `lopax reproduce`, on a claim that takes seconds."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from lopax import meta, reproductions
from lopax._core.errors import ConfigError
from lopax._core.single_writer import single_writer
from lopax.cli.main import main
from lopax.meta import build_families
from lopax.meta.config import PhaseConfig
from lopax.reproductions import (
    REPRODUCTIONS,
    CaseStudy,
    Check,
    Measured,
    RecipeStudy,
    Results,
    Score,
    Trial,
)
from lopax.reproductions.study import shortened

GROUP = meta.TasksConfig(
    datasets=("digits",), settings={"hidden": (4,), "batch_size": 16}, augment="none"
)
RUN = meta.RunConfig(
    name="toy",
    architecture="learned_sgd",
    tasks=(GROUP,),
    estimator=meta.EstimatorConfig(
        name="full_es", particles=4, horizon_low=8, horizon_high=8, chunk=4
    ),
    outer=meta.OuterConfig(optimizer="adam", learning_rate=0.1, weight_decay=0.0),
    phases=(PhaseConfig(outer_steps=20),),
    eval_every=0,
)


def judge(results: Results):
    trained = results.over_seeds("short", "trained", "mean")
    barely = results.over_seeds("short", "barely", "mean")
    found = f"{trained:.3f} against {barely:.3f}"
    return (Check("more outer steps help", trained < barely, found),)


TOY = RecipeStudy(
    name="toy",
    claim="Meta-training helps.",
    source="nobody",
    rule="it does",
    minutes=0.1,
    variants={
        "trained": RUN,
        "barely": dataclasses.replace(
            RUN, outer=dataclasses.replace(RUN.outer, learning_rate=1e-6)
        ),
    },
    tests={
        "short": Trial(
            task="digits_mlp_32",
            settings={"hidden": (4,), "batch_size": 16},
            num_steps=8,
            seeds=2,
            last=2,
        )
    },
    baselines={"sgd": (1e-3, 1e-1)},
    judge=judge,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    said: list[str] = []
    return folder, TOY.results(folder, meta_seeds=(0, 1), say=said.append), said


def test_every_variant_seed_and_test_is_there(done):
    _, results, said = done
    assert {v: len(x) for v, x in results.meta_loss.items()} == {
        "trained": 2,
        "barely": 2,
    }
    assert {v: len(x) for v, x in results.scores["short"].items()} == {
        "trained": 2,
        "barely": 2,
        "sgd": 1,
    }
    assert all(c.passed for c in judge(results)), judge(results)
    best = results.scores["short"]["sgd"][0]
    assert best.mean < results.scores["short"]["barely"][0].mean
    assert sum("meta-training" in line for line in said) == 4


def test_nothing_runs_twice(done):
    folder, results, _ = done
    said: list[str] = []
    again = TOY.results(folder, meta_seeds=(0, 1), say=said.append)
    assert again == results
    assert not any("meta-training" in line for line in said)


def test_the_report_says_what_was_found(done):
    folder, results, _ = done
    outcome = TOY.outcome(results)
    good = reproductions.write(TOY, outcome, folder, "lopax ...")
    text = good.read_text()
    assert text.startswith("# toy: pass") and "| trained |" in text
    assert (folder / "report.png").stat().st_size > 5_000
    bad = outcome._replace(checks=[Check("x", False, "y")])
    assert "# toy: fail" in reproductions.write(TOY, bad, folder, "c").read_text()


def test_divergence_is_never_a_pass(done):
    _, results, _ = done
    broken = Score(float("nan"), float("nan"), float("nan"), float("nan"))
    scores = {"short": {**results.scores["short"], "trained": [broken, broken]}}
    assert not judge(dataclasses.replace(results, scores=scores))[0].passed


RECIPES = [n for n in REPRODUCTIONS if isinstance(REPRODUCTIONS[n], RecipeStudy)]


@pytest.mark.parametrize("name", RECIPES)
def test_rules_can_pass_and_fail(name):
    """With made-up numbers: all small passes or fails, and not finite fails."""
    study = REPRODUCTIONS[name]
    assert isinstance(study, RecipeStudy)
    names = [*study.variants, *study.baselines]

    def outcome(level):
        scores = {
            t: {v: [Score(level(v), level(v), level(v), 0.99)] for v in names}
            for t in study.tests
        }
        losses = {v: [level(v)] for v in study.variants}
        return [c.passed for c in study.judge(Results(meta_loss=losses, scores=scores))]

    first = {"velo_small": "mixed horizons", "star": "star", "hierarchy": "rnn_mlp"}
    good = first[name]
    levels = {good: 0.01, "fixed horizon": 2.0, "adam": 3.0}
    assert all(outcome(lambda v: levels.get(v, 1.0)))
    assert not all(outcome(lambda v: 1.0))
    assert not all(outcome(lambda v: float("nan") if v == good else 1.0))
    # The recipes can be built.
    for run in study.variants.values():
        assert build_families(run.tasks)
        assert shortened(run, 0.1).total_steps < run.total_steps


def test_cases_are_measured_once_and_shown(tmp_path):
    calls: list[tuple[int, float]] = []

    def measure(case):
        calls.append((case.seed, case.steps(10)))
        curve = [1.0, float("nan"), 0.5]
        return Measured(
            {"loss": float(np.float32(case.seed)), "gap": np.inf}, {"run": curve}
        )

    study = CaseStudy(
        name="toy",
        claim="c",
        source="s",
        rule="r",
        minutes=0.1,
        settings={"rate": 0.1},
        variants={"a": measure, "b": lambda _: Measured({"loss": 2.0})},
        judge=lambda r: [Check("small", r.mean("a", "loss") < 1.0, "")],
    )
    first = study.carry_out(tmp_path, share=0.5, say=lambda _: None)
    again = study.carry_out(tmp_path, share=0.5, say=lambda _: None)
    assert calls == [(0, 5), (1, 5), (2, 5)] and not first.passed
    assert list(map(list, first.tables[0].rows)) == [
        ["a", "1 (0 to 2)", "inf (inf to inf)"],
        ["b", "2 (2 to 2)", ""],
    ]
    assert again.tables == first.tables
    changed = dataclasses.replace(study, settings={"rate": 0.2})
    changed.carry_out(tmp_path, meta_seeds=(0,), say=lambda _: None)
    assert calls[-1] == (0, 10)
    text = reproductions.write(study, first, tmp_path, "lopax ...").read_text()
    assert text.startswith("# toy: fail") and "| b | 2 (2 to 2) |  |" in text
    with pytest.raises(ConfigError, match="share = 2"):
        study.carry_out(tmp_path, share=2)


def test_shares_that_cannot_be():
    with pytest.raises(ConfigError, match="share = 0"):
        shortened(RUN, 0.0)
    assert shortened(RUN, 1e-6).total_steps == RUN.log_every


def test_the_command_runs_resumes_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(REPRODUCTIONS._entries, "toy", TOY)
    arguments = ["reproduce", "toy", "--meta-seeds", "1", "--out", str(tmp_path)]
    codes = {main(arguments), main(arguments)}
    shown = capsys.readouterr().out
    assert codes <= {0, 1} and "more outer steps help" in shown
    assert (tmp_path / "report.md").exists()
    with single_writer(tmp_path):
        assert main(arguments) == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err
    assert main(["reproduce", "stra"]) == 2
    assert "star" in capsys.readouterr().err
    assert np.isfinite(TOY.minutes)
