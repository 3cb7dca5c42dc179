"""What agents' gradients look like to meta-training, and the study on gridworlds."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lopax import meta
from lopax.architectures import architecture
from lopax.reproductions import CaseResults, Measured, hub, validation
from lopax.reproductions import optim4rl_grids as grids
from lopax.reproductions.agent_gradients import (
    BINS,
    LOW,
    WIDTH,
    Seen,
    divergence,
    histogram,
    seen,
)
from lopax.reproductions.rl_agents import recipe


def test_gradients_fall_into_bins_of_their_size():
    grads = np.asarray([[0.0, 1e-3, -1e-3], [1e9, 1e-20, 0.0]], np.float32)
    shares = np.asarray(histogram(jax.numpy.asarray(1.01 * grads)))
    expected = np.zeros(1 + BINS)
    at = 1 + int((-3.0 - LOW) / WIDTH)
    expected[[0, at, BINS, 1]] = np.asarray([2, 2, 1, 1]) / 6
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_moments_and_divergences():
    shares = np.zeros((3, 1 + BINS))
    shares[0, [0, 5]] = 0.5
    shares[1, [0, 5, 7]] = 0.5, 0.25, 0.25
    shares[2, 7] = 1.0
    found = Seen(shares)
    low = LOW + WIDTH * 4.5
    np.testing.assert_allclose(found.centre, [low, low + WIDTH, low + 2 * WIDTH])
    np.testing.assert_allclose(found.spread, [0.0, WIDTH, 0.0], atol=1e-12)
    np.testing.assert_allclose(divergence(shares[0], shares[0]), 0.0, atol=1e-12)
    half = divergence(shares[0], shares[1])
    np.testing.assert_allclose(half, 0.5 * np.log(2.0), rtol=1e-3)
    assert found.from_last.shape == (2,)
    np.testing.assert_allclose(found.from_last[1], np.log(4.0), rtol=1e-3)
    np.testing.assert_allclose(found.of_life(2)[5], 0.375)
    assert found.from_whole(found.of_life(2)).shape == (3,)


TINY = {
    **grids.SETTINGS,
    "environments": ["catch"],
    "hidden": [2],
    "agents": 4,
    "windows": 2,
}


def test_agents_are_watched_window_by_window():
    run = recipe(TINY, pipeline=False, outer_steps=4, seed=0)
    theta = architecture("optim4rl").init_theta(jax.random.key(0))
    found = seen(run, theta, 4, jax.random.key(1))
    assert found.shares.shape == (4, 1 + BINS)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0, rtol=1e-5)
    assert np.all(np.isfinite(found.centre)) and np.all(found.from_last >= 0.0)


def results(**changes: float) -> CaseResults:
    """Two meta-seeds with made-up numbers."""
    level = {
        grids.STAGGERED: 0.9,
        grids.IN_STEP: 0.5,
        grids.NEVER: 0.4,
        "untrained": 0.2,
        "adam at the same rate": 0.3,
        "adam, tuned": 2.0,
        "no learning": 0.0,
    }
    names = (*grids.TRAINED_ON, *grids.HELD_OUT)
    measured = {
        v: Measured({n: changes.get(v, x) for n in names}, {}) for v, x in level.items()
    }
    for v in grids.SCHEDULES:
        nats = 0.01 if v == grids.STAGGERED else 0.5
        name = f"gradients, {v}"
        curves = {grids.FRESH: [1.0, 0.5], grids.CENTRE: [-2.0, -3.0]}
        measured[name] = Measured({grids.FRESH: changes.get(name, nats)}, curves)
    return CaseResults(measured={v: [m, m] for v, m in measured.items()})


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({grids.IN_STEP: 0.95}, [1, 4]),
        ({grids.NEVER: 0.95}, [2]),
        ({"adam at the same rate": 0.95}, [3]),
        ({f"gradients, {grids.STAGGERED}": 0.2}, [0]),
        ({grids.STAGGERED: float("nan")}, [1, 2, 3, 4]),
        ({f"gradients, {grids.STAGGERED}": float("nan")}, [0]),
    ],
)
def test_the_rule_of_the_gridworlds(changes, failed):
    checks = grids.judge(results(**changes))
    assert [i for i, c in enumerate(checks) if not c.passed] == failed


def test_scores_and_what_is_shown():
    assert grids.scores(results(), grids.HELD_OUT)[grids.STAGGERED] == [0.45, 0.45]
    rows = grids.scored(results())[0].rows
    assert [grids.STAGGERED, "0.45, 0.45", "0.45, 0.45"] in rows
    panels = grids.panels(results())
    assert len(panels[0].curves) == 3 and "untrained" in panels[2].dots


def test_what_is_meant_at_size():
    tasks = meta.TasksConfig(**hub.AT_SIZE["tasks"])
    assert tasks.settings["size"] == 16 and tasks.network == "conv"
    assert set(hub.AT_SIZE["steps"].values()) == {500}
    run = validation.recipe(validation.AT_SIZE, "extra_valid", 100, 0)
    assert run.estimator.horizon_high == 160
    never = recipe(grids.SETTINGS, pipeline=False, resets=False, outer_steps=96, seed=0)
    assert never.estimator.horizon_high > 96 * grids.SETTINGS["updates"]
    environments = [getattr(t, "environment", None) for t in never.tasks]
    assert environments == list(grids.TRAINED_ON)
