"""Rules that train rules: learned outer optimizers, their family tree, the claim."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import jax
import numpy as np
import pytest
from flock import close, config, identical, recipe
from interrupted import interrupt

from lopax._core.errors import FileFormatError
from lopax.architectures import architecture
from lopax.cli.main import main
from lopax.evaluate import read_lineage, write_family_tree
from lopax.evaluate.report.family_tree import from_lines
from lopax.meta import (
    OuterConfig,
    PhaseConfig,
    PhaseTrainer,
    PopulationConfig,
    build_families,
    learned_outer,
    load_recipe,
    read_log,
    train,
)
from lopax.meta.loop import initial_theta
from lopax.reproductions import (
    Case,
    CaseResults,
    Measured,
    self_training,
    self_training_map,
)
from lopax.reproductions.self_training import SETTINGS
from lopax.theta import load_theta, save_theta


@pytest.fixture(scope="module")
def families():
    return build_families(config().tasks)


# Learned outer optimizers, with and without a population.


def test_a_learned_rule_trains_another_and_resumes_exactly(families, tmp_path):
    """The outer rule is an architecture with weights of its own, from a file."""
    rule = architecture("learned_adam", learning_rate=0.05)
    save_theta(tmp_path / "phi.safetensors", rule.init_theta(jax.random.key(0)), rule)
    run = config(
        outer=OuterConfig(
            optimizer="learned_adam", weights=str(tmp_path / "phi.safetensors")
        ),
        population=None,
    )
    by_hand = config(
        outer=OuterConfig(optimizer="adam", learning_rate=0.05), population=None
    )
    whole = train(run, families, tmp_path / "whole")
    close(whole.theta, train(by_hand, families, tmp_path / "adam").theta)
    calls = itertools.count()
    stopped = train(
        run, families, tmp_path / "parts", should_stop=lambda: next(calls) == 1
    )
    assert not stopped.finished
    parts = train(run, families, tmp_path / "parts", resume=True)
    assert identical(whole.theta, parts.theta)


def test_bundled_weights_may_be_the_outer_rule(families):
    run = config(
        outer=OuterConfig(optimizer="celo_adam", clip_norm=1.0), population=None
    )
    trainer = PhaseTrainer(run, run.phases[0], families)
    state = trainer.init(initial_theta(run), jax.random.key(0))
    (learned,) = jax.tree.leaves(
        state.outer, is_leaf=lambda x: isinstance(x, learned_outer.LearnedState)
    )[-1:]
    assert identical(learned.phi, load_theta("celo_adam"))
    assert int(learned.rule.num_steps) == 8


def test_a_warm_up_scales_a_learned_rules_steps(families):
    run = config(population=None)
    warm = config(population=None, outer=dataclasses.replace(run.outer, warmup=4))
    moved = []
    for r in (run, warm):
        trainer = PhaseTrainer(r, r.phases[0], families)
        state = trainer.init(initial_theta(r), jax.random.key(0))
        state, info = trainer.advance(state, 2)
        moved.append(np.asarray(info.update_norm))
    assert moved[1][0] == 0.0
    assert 0.0 < moved[1][1] < 0.5 * moved[0][1]


def test_a_population_of_one_is_an_ordinary_run(families, tmp_path):
    alone = train(config(population=None), families, tmp_path / "alone")
    one = PopulationConfig(size=1, interval=4, selection="none", eval_tasks=2)
    flock = train(config(population=one), families, tmp_path / "flock")
    close(alone.theta, flock.theta)


# Files, pictures, commands.


def test_the_family_tree_is_drawn(families, tmp_path):
    folder = tmp_path / "run"
    train(config(phases=(PhaseConfig(outer_steps=4),)), families, folder)
    (tmp_path / "lineage.jsonl").write_text((folder / "lineage.jsonl").read_text())
    with (tmp_path / "lineage.jsonl").open("a") as file:
        file.write('{"step": 10, "member": 0, "sco')  # being written
    path = write_family_tree(tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 10_000


def test_ancestry_is_traced_through_the_generations():
    def line(step, member, score, parent):
        known = {"step": step, "member": member, "score": score, "parent": parent}
        return {**known, "phi_parent": None, "multiplier": 1.0}

    lines = [line(0, 0, 1.0, 0), line(0, 1, 2.0, 1), line(0, 2, None, 2)]
    lines += [line(5, 0, 3.0, 1), line(5, 1, 1.0, 1), line(5, 2, 2.0, 1)]
    lines += [line(9, 0, 0.5, 0), line(9, 1, 1.0, 1), line(9, 2, 2.0, 0)]
    found = from_lines(lines, "here")
    assert found.founders().tolist() == [[0, 1, 2], [1, 1, 1], [1, 1, 1]]
    assert found.best_line().tolist() == [1, 1, 0]
    assert found.best_scores().tolist() == [1.0, 1.0, 0.5]
    assert np.isposinf(found.scores[0, 2])
    with pytest.raises(FileFormatError, match="members are missing at step 5"):
        from_lines(lines[:3] + lines[4:], "here")
    with pytest.raises(FileFormatError, match="lacks multiplier"):
        from_lines([{k: v for k, v in lines[0].items() if k != "multiplier"}], "here")
    with pytest.raises(FileFormatError, match="no complete generation"):
        from_lines([], "here")


def test_a_run_without_population_has_no_lineage(tmp_path):
    with pytest.raises(FileFormatError, match="no population's run"):
        read_lineage(tmp_path)


def test_the_command_trains_draws_and_reports(tmp_path, capsys):
    out = tmp_path / "run"
    argv = [
        "train",
        str(recipe(tmp_path)),
        "--out",
        str(out),
        "--outer.multiplier",
        "2",
    ]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "family tree:" in said.out and "best" in said.err and "s left" in said.err
    saved = json.loads((out / "config.json").read_text())
    assert saved["outer"]["multiplier"] == 2.0 and saved["population"]["size"] == 4
    assert (out / "family_tree.png").exists()
    assert main(["report", str(out)]) == 0
    assert "Family tree" in (out / "report.html").read_text()


@pytest.mark.slow
def test_ctrl_c_saves_and_the_population_goes_on(tmp_path):
    out = tmp_path / "run"
    argv = ["train", str(recipe(tmp_path, 1_000_000)), "--out", str(out)]
    code, rest = interrupt(argv, "all ")
    assert code == 130, rest
    assert "lopax train --resume" in rest and "Traceback" not in rest
    done = read_log(out / "metrics.jsonl")[-1]["step"]
    run = load_recipe(tmp_path / "flock.toml")
    seen: list[int] = []
    outcome = train(
        run,
        build_families(run.tasks),
        out,
        resume=True,
        listener=lambda p: seen.append(p.step),
        should_stop=lambda: bool(seen),
    )
    assert not outcome.finished and seen == [done + 2]


# The reproduction.

TINY: dict[str, Any] = {
    **SETTINGS,
    "rule": "l2o_gru",
    "rule_settings": {"units": 1, "step_mult": 0.1},
    "trainable": ["head/*"],
    "unroll": 3,
    "task": {"hidden": (), "batch_size": 4},
    "pairs": 2,
    "chunk": 2,
    "size": 4,
    "interval": 2,
    "window": 2,
    "eval_tasks": 2,
    "outer_steps": 8,
    "together": 2,
}


def test_the_reproduction_measures_a_shortened_run(tmp_path):
    case = Case(3, 0.5, TINY, tmp_path, print)
    found = self_training.population(case)
    assert len(found.curves["best score"]) == 3  # the founders, two generations
    assert found.values["final best"] == found.curves["best score"][-1] < 5.0
    assert (tmp_path / "run" / "family_tree.png").exists()
    again = self_training.population(case)  # from what the folder has
    assert again == found


def test_the_largest_share_of_an_improvement():
    curve = np.asarray([3.0, 3.0, 2.8, 1.0, 0.9, 1.0])
    assert self_training.largest_share(curve, 1) == pytest.approx(1.8 / 2.0)
    assert self_training.largest_share(curve, 2) == pytest.approx(2.0 / 2.0)
    assert self_training.largest_share(curve[::-1], 2) == 0.0


def test_the_rule_of_the_reproduction():
    def passed(ours: list[float], control: list[float], shares: list[float]):
        def many(values: list[float], shares: list[float]) -> list[Measured]:
            return [
                Measured({"final best": v, "largest share": s})
                for v, s in zip(values, shares, strict=True)
            ]

        made = {
            "population": many(ours, shares),
            "no selection": many(control, shares),
        }
        return [c.passed for c in self_training.judge(CaseResults(measured=made))]

    high, steep = [2.5, 2.5, 2.5], [0.8, 0.8, 0.8]
    assert passed([0.8, 2.4, 0.9], high, steep) == [True, True, True]
    assert passed([0.8, 2.4, 1.1], high, steep) == [False, False, False]
    assert passed([0.8, 0.9, 0.9], [1.7, 1.7, 2.5], steep) == [True, False, True]
    assert passed([0.8, 0.9, 0.9], high, [0.5, 0.8, 0.2]) == [True, True, False]


def map_results(ours: dict[str, float], control: float) -> CaseResults:
    """Two meta-seeds; every population ends at 0.7 unless `ours` says otherwise."""
    made = {}
    for point in self_training_map.POINTS:
        ends = {"population": ours.get(point, 0.7), "no selection": control}
        for form, end in ends.items():
            values = {"final best": end, "lit at": 60.0 if end < 1.0 else np.inf}
            found = Measured(values, {"best score": [2.4, end]})
            made[f"{point}: {form}"] = [found, found]
    return CaseResults(measured=made)


def test_the_rule_of_the_map():
    def passed(ours: dict[str, float], control: float) -> list[bool]:
        checks = self_training_map.judge(map_results(ours, control))
        return [c.passed for c in checks]

    assert passed({}, 2.0) == [True, True]
    assert passed({"base": 2.1}, 2.0) == [True, False]
    assert passed({}, 0.8) == [False, True]
    assert passed({}, 0.7) == [False, False]
    assert passed(dict.fromkeys(self_training_map.POINTS, np.nan), 2.0) == [False] * 2
    (table,) = self_training_map.table(map_results({"base": 2.1}, 2.0))
    assert table.rows[0][1:] == ["2.10, 2.10", "inf, inf", "2.00, 2.00", "inf, inf"]
    shown = self_training_map.panels(map_results({}, 2.0))
    assert len(shown) == len(self_training_map.POINTS)
    assert shown[0].curves["population"] == [[2.4, 0.7], [2.4, 0.7]]


def test_a_point_of_the_map_changes_what_it_says(tmp_path):
    points = {"base": {}, "more noise": {"pairs": 1}}
    case = Case(3, 0.25, {**TINY, "points": points}, tmp_path, print)
    found = self_training_map.measure("more noise", self_training.no_selection, case)
    assert found.values["lit at"] == np.inf or found.values["lit at"] % 2 == 0
    written = (tmp_path / "run" / "config.json").read_text()
    assert '"particles": 1' in written
