"""Scores, tuning, aggregates, profiles and tests against hand-computed cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lopax._core.errors import ConfigError, IncompleteResults
from lopax.statistics import aggregate, profiles, scores, significance
from lopax.statistics.tuning import tune

# ---- scores


def test_smoothing_is_the_bias_corrected_average_by_hand():
    curve = [4.0, 2.0, 6.0]
    expected = [4.0, (0.9 * 0.4 + 0.2) / 0.19, (0.9 * (0.36 + 0.2) + 0.6) / 0.271]
    np.testing.assert_allclose(scores.smooth(curve), expected, rtol=1e-12)


def test_smoothing_a_constant_changes_nothing():
    np.testing.assert_allclose(scores.smooth(np.full((2, 50), 3.0)), 3.0)


def test_smoothing_skips_an_overflow_but_keeps_what_follows():
    with_hole = scores.smooth([1.0, np.inf, np.nan, 3.0])
    np.testing.assert_allclose(with_hole, [1.0, 1.0, 1.0, scores.smooth([1.0, 3.0])[1]])


def test_smoothing_before_the_first_finite_loss_is_nan():
    assert np.isnan(scores.smooth([np.nan, 2.0])[0])


def test_final_loss_of_a_diverged_run_is_infinite():
    curves = np.array([[2.0, 1.0], [1.0, np.nan], [2.0, 1.0]])
    last = scores.smooth([2.0, 1.0])[-1]
    np.testing.assert_allclose(scores.final_loss(curves), [last, np.inf, last])
    flagged = scores.final_loss(curves, diverged=[True, True, False])
    np.testing.assert_allclose(flagged, [np.inf, np.inf, last])


def test_final_loss_score():
    found = scores.final_loss_score([0.5, 1.0, 2.0, np.inf], 1.0)
    np.testing.assert_allclose(found, [2.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("loss", "reference"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -1.0)]
)
def test_a_ratio_with_a_loss_at_or_below_zero_is_undefined(loss, reference):
    assert np.isnan(scores.final_loss_score(loss, reference))


def test_a_reference_that_diverged_gives_no_score():
    assert np.isnan(scores.final_loss_score(1.0, np.inf))


def test_steps_to_target_counts_updates():
    # Unsmoothed, the loss after t updates is 10 - t.
    curve = 10.0 - np.arange(10.0)
    found = scores.steps_to_target(np.stack([curve] * 3), [7.0, 0.5, 1.0], decay=0.0)
    np.testing.assert_allclose(found, [3.0, np.inf, 9.0])


def test_nobody_arrives_in_less_than_one_update():
    assert scores.steps_to_target([1.0, 1.0], 5.0) == 1.0


def test_nobody_reaches_the_target_of_a_reference_that_diverged():
    assert np.isinf(scores.steps_to_target([1.0, 1.0], np.inf))


def test_speedup():
    curves = np.array([10.0 - np.arange(10.0)] * 2)
    found = scores.speedup(curves, [5.0, -1.0], decay=0.0)
    np.testing.assert_allclose(found, [2.0, 0.0])
    gone = scores.speedup(curves[0], 5.0, diverged=True, decay=0.0)
    assert gone == 0.0


# ---- tuning


def test_tuning_takes_the_best_final_value_of_the_mean_curve():
    train = np.zeros((2, 3, 40))
    train[0] = [[5.0], [1.0], [2.5]]
    train[1] = [[5.0], [4.0], [2.0]]  # the mean is lowest for the third rate
    found = tune(train, np.zeros((2, 3), bool))
    assert found.index == 2
    np.testing.assert_allclose(found.final, [5.0, 2.5, 2.25])
    assert found.at_edge
    assert not found.all_diverged


def test_a_rate_at_which_one_seed_diverges_cannot_win():
    train = np.ones((2, 3, 10)) * np.array([3.0, 2.0, 1.0])[None, :, None]
    train[1, 2, 5:] = np.nan
    diverged = np.zeros((2, 3), bool)
    diverged[1, 2] = True
    found = tune(train, diverged)
    assert found.index == 1
    assert np.isinf(found.final[2])
    assert not found.at_edge


def test_tuning_when_everything_diverged():
    found = tune(np.full((2, 2, 4), np.nan), np.ones((2, 2), bool))
    assert found.all_diverged
    assert found.index == 0


# ---- aggregates

TABLE = np.array([[0.1, 0.9, 1.4], [0.3, 1.1, 1.2], [0.2, 1.0, 2.5]])


@pytest.mark.parametrize("shape", [(3, 3), (5, 1), (1, 7), (2, 4), (10, 17)])
def test_iqm_is_the_published_trimmed_mean(shape):
    table = np.random.default_rng(1).lognormal(size=shape)
    expected = stats.trim_mean(table.ravel(), 0.25)
    np.testing.assert_allclose(aggregate.iqm(table), expected, rtol=1e-12)


def test_aggregates_by_hand():
    # 9 scores, 2 cut at each end: 0.3, 0.9, 1.0, 1.1, 1.2
    np.testing.assert_allclose(aggregate.iqm(TABLE), 4.5 / 5)
    np.testing.assert_allclose(aggregate.median(TABLE), 1.0)
    np.testing.assert_allclose(aggregate.mean(TABLE), (0.2 + 1.0 + 1.7) / 3)
    # capped at 1: task means 0.2, (0.9 + 1 + 1) / 3, 1
    np.testing.assert_allclose(
        aggregate.optimality_gap(TABLE), 1.0 - (0.2 + 2.9 / 3 + 1.0) / 3
    )


@pytest.mark.parametrize("name", aggregate.STATISTICS)
def test_aggregates_accept_batches(name):
    batch = np.random.default_rng(0).normal(size=(4, 2, 3, 5))
    statistic = aggregate.STATISTICS[name]
    expected = [[statistic(batch[i, j]) for j in range(2)] for i in range(4)]
    np.testing.assert_allclose(statistic(batch), expected)


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, (4, 3)).astype(np.float64), np.zeros((6, 3))
    y += rng.integers(0, 5, y.shape)
    expected = np.mean(
        [stats.mannwhitneyu(x[:, t], y[:, t]).statistic / 24 for t in range(3)]
    )
    found = aggregate.probability_of_improvement(x, y)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(aggregate.probability_of_improvement(y, x), 1 - expected)


def test_resampling_is_stratified():
    """Scores stay in their own task: every draw of column t comes from column t."""
    table = np.arange(12.0).reshape(3, 4)
    draws = aggregate.resample(table, np.random.default_rng(0), 200)
    assert draws.shape == (200, 3, 4)
    np.testing.assert_array_equal(draws % 4, np.broadcast_to(np.arange(4), draws.shape))
    # Runs of different tasks are drawn independently of each other.
    rows = draws // 4
    assert (rows[:, :, 0] != rows[:, :, 1]).any()


def test_bootstrap_endpoints_of_an_enumerable_case():
    """Two runs 0 and 1 of one task: resampled means 0, 1/2, 1 with 1/4, 1/2, 1/4."""
    table = [[0.0], [1.0]]
    wide = aggregate.bootstrap(aggregate.mean, table, repeats=4_000)
    assert wide == aggregate.Interval(0.5, 0.0, 1.0)
    narrow = aggregate.bootstrap(aggregate.mean, table, repeats=4_000, level=0.4)
    assert narrow == aggregate.Interval(0.5, 0.5, 0.5)


def test_bootstrap_endpoints_match_exact_enumeration():
    """All 27 x 27 resamples of 3 runs x 2 tasks: quantiles of the exact law."""
    table = np.array([[0.8, 1.1], [1.0, 1.6], [1.3, 1.2]])
    picks = list(itertools.product(range(3), repeat=3))
    exact = [
        aggregate.iqm(np.stack([table[list(a), 0], table[list(b), 1]], axis=1))
        for a in picks
        for b in picks
    ]
    low, high = np.quantile(exact, [0.025, 0.975])
    found = aggregate.bootstrap(aggregate.iqm, table, repeats=40_000)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.01)


def test_bootstrap_interval_of_the_mean_has_the_textbook_width():
    table = np.random.default_rng(3).normal(1.0, 0.2, size=(60, 4))
    found = aggregate.bootstrap(aggregate.mean, table, repeats=8_000)
    error = math.sqrt(table.var(axis=0).sum() / 60) / 4
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * error, rtol=0.06)


def test_bootstrap_is_reproducible_and_leaves_the_global_generator_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    a = aggregate.bootstrap(aggregate.iqm, TABLE, repeats=500, seed=7)
    b = aggregate.bootstrap(aggregate.iqm, TABLE, repeats=500, seed=7)
    c = aggregate.bootstrap(aggregate.iqm, TABLE, repeats=500, seed=8)
    assert a == b != c
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore


def test_bootstrap_chunks_do_not_change_the_result():
    whole = aggregate.bootstrap(aggregate.iqm, TABLE, repeats=300)
    parts = aggregate.bootstrap(aggregate.iqm, TABLE, repeats=300, budget=100)
    assert whole == parts


def test_a_table_with_a_hole_has_no_aggregate():
    table = TABLE.copy()
    table[1, 1] = np.nan
    with pytest.raises(IncompleteResults, match="1 of 9 scores are missing"):
        aggregate.bootstrap(aggregate.iqm, table)
    with pytest.raises(ConfigError, match=r"\[runs, tasks\]"):
        aggregate.bootstrap(aggregate.iqm, [1.0, 2.0])
    with pytest.raises(ConfigError, match="level"):
        aggregate.bootstrap(aggregate.iqm, TABLE, level=95)
    with pytest.raises(ConfigError, match="same tasks"):
        aggregate.bootstrap_pair(
            aggregate.probability_of_improvement, TABLE, TABLE[:, :2]
        )


# ---- profiles


def test_performance_profile_by_hand():
    found = profiles.performance_profile(TABLE, [0.0, 1.0, 1.3, 3.0], repeats=200)
    np.testing.assert_allclose(found.share, [1.0, 4 / 9, 2 / 9, 0.0])
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.low[1] < found.high[1]


def test_time_profile_by_hand():
    steps = np.array(
        [
            [[10.0, 40.0], [np.inf, 50.0]],
            [[20.0, 20.0], [np.inf, np.inf]],
        ]
    )  # [2 optimizers, 2 runs, 2 tasks]
    _, shares = profiles.time_profile(steps, [1.0, 2.0, 10.0])
    np.testing.assert_allclose(shares, [[0.5, 0.75, 0.75], [0.25, 0.5, 0.5]])


# ---- significance


def test_sign_flip_is_exact_for_few_values():
    rng = np.random.default_rng(0)
    assert significance.sign_flip(np.array([1.0, 1.0, 1.0]), rng) == 0.25
    assert significance.sign_flip(np.array([1.0, -1.0]), rng) == 1.0
    assert significance.sign_flip(np.zeros(4), rng) == 1.0
    # 1 + 2 - 4: of the 8 sums +-1 +-2 +-4, all but +-1 ... |s| >= 1 holds for all.
    assert significance.sign_flip(np.array([1.0, 2.0, -4.0]), rng) == 1.0
    # |s| >= 5 for s in {7, 5, -7, -5}
    assert significance.sign_flip(np.array([-1.0, 2.0, 4.0]), rng) == 0.5


def test_sampled_sign_flip_agrees_with_a_t_test():
    values = np.random.default_rng(4).normal(0.25, 1.0, size=80)
    found = significance.sign_flip(values, np.random.default_rng(0), 20_000)
    # Standard normal tails are close enough to Student's for 80 values.
    z = abs(values.mean()) / (values.std(ddof=1) / math.sqrt(80))
    expected = 2.0 * stats.norm.sf(z)
    assert abs(found - expected) < 0.01


def test_paired_test_tells_seeds_from_tasks():
    """A big gain on one task of two: sure about these tasks, not about others."""
    rng = np.random.default_rng(0)
    d = np.array([0.5, 0.0]) + 0.01 * rng.standard_normal((8, 2))
    found = significance.paired_test(d)
    assert found.p_runs < 0.05
    assert found.p_tasks >= 0.5
    assert (found.tasks, found.seeds, found.seeds_needed) == (2, 8, 2)


def test_seeds_needed_by_hand():
    # mean 0.5 per seed-mean, sd of the mean over two tasks: sqrt(2 * 0.5) / 2 = 0.5
    d = np.array([[0.0, 0.0], [1.0, 1.0]])
    expected = math.ceil(((1.959964 + 0.841621) * 0.5 / 0.5) ** 2)
    assert significance.seeds_needed(d) == expected == 8
    assert significance.seeds_needed(d[:1]) is None
    assert significance.seeds_needed(d - 0.5) is None


def test_paired_test_refuses_what_is_not_finite():
    with pytest.raises(IncompleteResults):
        significance.paired_test([[np.inf, 1.0]])
    with pytest.raises(ConfigError):
        significance.paired_test([1.0, 2.0])
