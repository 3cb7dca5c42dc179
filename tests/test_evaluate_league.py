"""The one-setting league, generalisation, seconds, and losses that are nearly zero."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from evaluate_study import fake_study

from lopax import evaluate
from lopax.evaluate.judge import judge
from lopax.evaluate.report.text import headline
from lopax.evaluate.results import seconds
from lopax.evaluate.results.league import rate_scores
from lopax.evaluate.runs import cost, timing
from lopax.statistics import held_out, scores
from lopax.statistics.tuning import Tuned


@pytest.fixture(scope="module")
def summary():
    return evaluate.summarise(fake_study())


def with_finals(summary, finals):
    """The summary with these final losses [tasks, rates] in Adam's place."""
    entries = dict(summary.entries)
    for task, final in zip(summary.scored, finals, strict=True):
        tuned = Tuned(int(np.argmin(final)), np.asarray(final), False, False)
        entries["adam", task] = entries["adam", task]._replace(tuned=tuned)
    start = dict.fromkeys(summary.scored, 10.0)
    target = dict.fromkeys(summary.scored, 1.0)
    return dataclasses.replace(summary, entries=entries, start=start, target=target)


def test_the_league_chooses_on_the_other_tasks(summary):
    rates = summary.study.spec("adam").learning_rates
    finals = np.full((4, len(rates)), 4.0)
    finals[:, 5], finals[3, 5] = 1.0, np.inf  # good on three tasks, lost on one
    finals[:, 7] = [2.0, 2.0, 2.0, 2.0]
    finals[3, 9] = 0.5
    summary = with_finals(summary, finals)
    adam: Any = next(s for s in evaluate.league(summary) if s.optimizer == "adam")
    # Per task: 1, 1, 1, 2; the middle half of four is two of them.
    assert adam.tuned.iqm == pytest.approx(1.0)
    assert adam.hindsight.rates == (rates[5],) and adam.hindsight.lowest == 0.0
    # Without task 3 rate 5 is best, and task 3 pays for it.
    assert rates[5] in adam.held_out.rates
    assert adam.held_out.lowest == 0.0
    np.testing.assert_allclose(
        rate_scores(summary, "adam")[:, [5, 7]],
        [[1, 0.5], [1, 0.5], [1, 0.5], [0, 0.5]],
    )


def test_untuned_optimizers_have_one_setting_and_stand_in_the_same_table(summary):
    found = {s.optimizer: s for s in evaluate.league(summary)}
    assert set(found) == set(summary.optimizers)
    celo = found["celo"]
    assert celo.budget == 1 and celo.hindsight.rates == ()
    assert celo.tuned == celo.hindsight == celo.held_out
    values = [s.one_setting.iqm for s in evaluate.league(summary)]
    assert values == sorted(values, reverse=True)
    for s in found.values():
        assert s.tuned.iqm >= s.hindsight.iqm - 1e-12


def test_with_one_task_nothing_can_be_left_out():
    found = evaluate.league(evaluate.summarise(fake_study(tasks=1)))
    assert all(s.held_out is None for s in found)
    assert found[0].one_setting == found[0].hindsight


def test_losses_below_two_per_cent_count_by_their_logarithm():
    start = 5.0
    losses = np.asarray([5.0, 0.5, 0.1, 0.1 / np.e, 1e-11, 1e-12])
    shown = scores.compressed(losses, start)
    np.testing.assert_allclose(shown[:4], [5.0, 0.5, 0.1, 0.05])
    assert np.all(np.diff(shown) < 0)
    # No ratio of a million: 1e-11 is about 24 times better than 2 %.
    ratio = scores.final_loss_score(losses[-2], 0.1, start)
    assert ratio == pytest.approx(1 + np.log(0.1 / 1e-11)) and ratio < 30
    assert scores.final_loss_score(0.5, 1.0, start) == 2.0
    assert np.isnan(scores.final_loss_score(0.0, 1.0, start))
    assert np.isnan(scores.final_loss_score(-1.0, 1.0, start))
    assert scores.final_loss_score(np.inf, 1.0, start) == 0.0


def test_a_rule_that_fits_faster_and_tests_worse_says_so_first():
    study = fake_study()
    groups = dict(study.groups)
    for (name, task), group in groups.items():
        if name == "celo":
            worse = group.test * np.linspace(1.0, 2.5, group.test.shape[-1])
            groups[name, task] = dataclasses.replace(
                group, test=worse.astype(np.float32)
            )
    summary = evaluate.summarise(dataclasses.replace(study, groups=groups))
    row: Any = summary.row("celo")
    assert row.iqm.value > 1.0 > row.held_out.test.high
    assert "fits the training data better and generalises worse" in headline(
        summary, row
    )
    assert "its training loss is lower and its test loss higher" in headline(
        summary, row
    )
    honest = evaluate.summarise(study)
    said = headline(honest, honest.row("celo"))
    assert "generalises worse" not in said and "On test data it scores" in said
    for page in (evaluate.render_markdown(summary), evaluate.render_html(summary)):
        assert page.index("generalises worse") < page.index("optimality")


def test_held_out_scores_at_the_end_and_at_the_best_validation_loss():
    valid = np.asarray([[3.0, 1.0, 2.0], [3.0, np.nan, 1.0]])
    test = np.asarray([[3.0, 1.5, 2.5], [3.0, 9.0, 1.2]])
    accuracy = {"test/accuracy": np.asarray([[0.1, 0.8, 0.6], [0.1, 0.2, 0.9]])}
    found: Any = held_out.held_out(valid, test, accuracy, np.asarray([False, False]))
    np.testing.assert_allclose(found.test, [2.5, 1.2])
    np.testing.assert_allclose(found.test_best, [1.5, 1.2])
    np.testing.assert_allclose(found.accuracy_best, [0.8, 0.9])
    gone = held_out.held_out(valid, test, {}, np.asarray([True, False]))
    assert np.isinf(gone.test[0]) and gone.accuracy is None
    scored: Any = held_out.generalisation({"t": found}, {"t": found}, {"t": 3.0})
    assert scored.accuracy.value == pytest.approx(0.0, abs=1e-9)
    assert scored.test_best.low <= scored.test_best.value <= scored.test_best.high
    # A loss at or below zero has no ratio; the other scores stay.
    zero = found._replace(test=np.asarray([0.0, 1.0]))
    part = held_out.generalisation({"t": zero}, {"t": zero}, {"t": 3.0})
    assert part.test is None and part.valid is not None


def timed(study, **changed):
    groups = {}
    for (name, task), group in study.groups.items():
        ratio = {"adam": 1.0, "celo": 2.0}.get(name, 1.5)
        price = {**group.cost, "ratio": ratio, "spread": 0.1, "load": 0.0, **changed}
        price["step_ms"] = 0.5 * ratio
        groups[name, task] = dataclasses.replace(
            group, headers=({**group.headers[0], "cost": price}, *group.headers[1:])
        )
    return dataclasses.replace(study, groups=groups)


def test_seconds_divide_the_updates_saved_by_what_an_update_costs():
    summary = evaluate.summarise(timed(fake_study()))
    row: Any = summary.row("celo")
    assert row.in_seconds.value == pytest.approx(row.speedup.value / 2.0)
    assert seconds.step_seconds(summary.study, "celo", "task_0", "adam") == (
        pytest.approx(1e-3)
    )
    page = evaluate.render_markdown(summary)
    assert "## Seconds to adam's final loss" in page
    assert "busy machine" not in page
    steps = np.median(summary.entries["celo", "task_0"].steps)
    assert f"| task_0 | {steps * 1e-3:.3g} |" in page.split("## Seconds")[1]
    assert 'id="clock"' in evaluate.render_html(summary)


def test_a_cost_of_a_busy_machine_says_so():
    busy = evaluate.summarise(timed(fake_study(), load=3.5))
    assert "busy machine (up to 3.5 other processes per core)" in (
        evaluate.render_markdown(busy)
    )
    unsteady = evaluate.summarise(timed(fake_study(), spread=0.8))
    assert "differ by up to 80 %" in evaluate.render_markdown(unsteady)


def test_costs_are_added_to_runs_that_have_none(tmp_path):
    from test_evaluate_shipped import problem

    store = evaluate.Store(tmp_path)
    specs = evaluate.optimizer_specs(["adam@0.01", "sgd@0.01"])
    evaluate.run_study(store, specs, [problem()], [0, 1], measure_cost=False)
    assert timing.add_costs(store, specs, [problem()], [0, 1]) == 2
    assert timing.add_costs(store, specs, [problem()], [0, 1]) == 0
    found = evaluate.collect(store, specs, [problem()], [0, 1])
    price: Any = found.group("sgd@0.01", "line").cost
    assert price["ratio"] > 0 and price["load"] >= 0
    costs = {"sgd": {"a": cost.Cost(1, 0.5, 0, 0, 1, 0, 0.0, "cpu")}}
    assert timing.mean_ratio(costs["sgd"]) == (0.5, 0.5, 0.5)


def test_old_and_new_definitions_of_a_baseline_never_mix(tmp_path):
    from test_evaluate_shipped import problem

    store = evaluate.Store(tmp_path / "store")
    old = dataclasses.replace(
        evaluate.default_rate("sgd", 0.01), name="mine", settings={}
    )
    new = dataclasses.replace(old, settings={"schedule": "cosine"})
    options = {"measure_cost": False, "store": store, "folder": tmp_path, "seeds": 1}
    adam = evaluate.default_rate("adam", 0.01)
    first: Any = judge([problem()], [old, adam], reference=adam.name, **options)
    assert first.outcome.done == 2
    assert "other definitions" not in first.report.markdown.read_text()
    second: Any = judge([problem()], [new, adam], reference=adam.name, **options)
    assert second.outcome.done == 1  # nothing of the old one is taken for the new
    said = second.report.markdown.read_text()
    assert "other definitions of mine" in said and "not used" in said
