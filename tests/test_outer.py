"""Outer optimizers that are made by hand: schedules, clipping, accumulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lopax import meta
from lopax._core.errors import ConfigError
from lopax.architectures import architecture
from lopax.meta import outer


def updates_of(config: meta.OuterConfig, grads: list[Any], total: int = 100) -> Any:
    """The updates of one tensor that starts at zero and stays there."""
    rule = outer.build(config, total, architecture("learned_sgd"))
    params = np.zeros_like(grads[0])
    state = rule.init(params)
    found = []
    for grad in grads:
        update, state = rule.update(grad, state, params)
        found.append(np.asarray(update))
    return np.stack(found)


def sgd(**settings: Any) -> meta.OuterConfig:
    return meta.OuterConfig(
        **{"optimizer": "sgd", "b1": 0.0, "learning_rate": 0.5, **settings}
    )


def test_halving_and_elementwise_clipping():
    config = sgd(schedule="halving", decay_steps=10, clip_value=2.0, clip_norm=1.0)
    rates = [np.asarray(outer.schedule(config, 100)(t)) for t in (0, 9, 10, 25)]
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.25, 0.125])
    (update,) = updates_of(config, [np.array([100.0, 0.0, -2.0], np.float32)])
    # First elementwise to (2, 0, -2), then to norm one.
    np.testing.assert_allclose(
        update, -0.5 * np.array([1.0, 0.0, -1.0]) / np.sqrt(2.0), rtol=1e-5
    )


def test_accumulated_gradients_are_averaged_before_they_are_clipped():
    grads = [np.full(3, g, np.float32) for g in (9.0, -3.0, 1.0, 1.0)]
    found = updates_of(sgd(accumulate=2, clip_value=2.0), grads)
    # (9 - 3) / 2 = 3, clipped to 2; then (1 + 1) / 2. Nothing moves in between.
    np.testing.assert_allclose(found[:, 0], [0.0, -1.0, 0.0, -0.5])


def test_schedules_count_outer_steps_whatever_is_accumulated():
    ramp = sgd(schedule="cosine", warmup=4, accumulate=2)
    one = np.ones(2, np.float32)
    found = -updates_of(ramp, [one] * 20, 20)[1::2, 0]
    each = -updates_of(sgd(schedule="cosine", warmup=4), [one] * 20, 20)[:, 0]
    np.testing.assert_allclose(found, each[::2], rtol=1e-6)
    assert found[0] == 0.0 and found.max() == pytest.approx(0.5)


def test_accumulate_must_be_positive():
    with pytest.raises(ConfigError, match=r"accumulate = 0: must be a number >= 1"):
        sgd(accumulate=0)
