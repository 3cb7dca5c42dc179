"""Batches that are never seen twice, and the suites and networks that use them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopax import evaluate, tasks
from lopax._core.errors import ConfigError
from lopax.tasks.fresh import Freshness, fresh
from lopax.tasks.mixer import Mixer
from lopax.tasks.resnet import ConvAutoencoder, ResNet, group_norm
from lopax.tasks.suites import SUITES

KEY = jax.random.key(3)


def test_only_training_batches_are_changed_and_differently_each_time():
    plain: Any = tasks.task("digits_mlp_128x128", batch_size=32)
    changed: Any = fresh(plain, shift=1, noise=0.1, labels=0.5)
    draw = jax.jit(changed.batch, static_argnums=1)
    same = [
        changed.source.base.draw(jax.random.split(KEY)[0], s, 32) for s in ("test",)
    ]
    for a, b in zip(draw(KEY, "test"), same[0], strict=True):
        np.testing.assert_array_equal(a, b)
    inputs, labels = draw(KEY, "train")
    base, true = changed.source.base.draw(jax.random.split(KEY)[0], "train", 32)
    assert inputs.shape == base.shape and labels.dtype == true.dtype
    assert 4 <= int((labels != true).sum()) <= 28
    assert np.all(np.asarray(draw(jax.random.key(4), "train")[0] != inputs).any())


def test_shifts_and_mirrors_move_pixels_and_invent_none():
    plain: Any = tasks.task("digits_conv", batch_size=16)
    for settings in ({"shift": 2}, {"flip": True}):
        made: Any = fresh(plain, **settings)
        draw_key = jax.random.split(KEY)[0]
        base, _ = made.source.base.draw(draw_key, "train", 16)
        moved, _ = made.batch(KEY, "train")
        assert moved.shape == base.shape == (16, 8, 8, 1)
        for a, b in zip(np.asarray(moved), np.asarray(base), strict=True):
            if settings.get("flip"):
                assert np.array_equal(a, b) or np.array_equal(a, b[:, ::-1])
            else:
                wide = np.pad(b, ((2, 2), (2, 2), (0, 0)))
                options = [
                    wide[i : i + 8, j : j + 8] for i in range(5) for j in range(5)
                ]
                assert any(np.array_equal(a, o) for o in options)
        assert np.any(np.asarray(moved) != np.asarray(base))


def test_freshness_that_makes_no_sense_is_refused():
    wine: Any = tasks.task("wine_mlp")
    with pytest.raises(ConfigError, match="no square images: shift and flip"):
        fresh(wine, shift=1)
    with pytest.raises(ConfigError, match=r"labels = 1\.5: must be a number"):
        Freshness(labels=1.5)


@pytest.mark.parametrize("suite", ["smoke", "quickstart", "embedded"])
def test_the_losses_of_embedded_suites_have_a_floor(suite):
    """What can be fitted to the last digit is in none of them."""
    for member in SUITES[suite].tasks:
        made: Any = member.make()
        narrow = "narrow" in member.name or member.name.endswith("_lm")
        assert narrow or made.source.freshness.noise > 0
        again = made.batch(jax.random.key(0), "train")
        other = made.batch(jax.random.key(1), "train")
        assert np.any(np.asarray(again[0]) != np.asarray(other[0]))


@pytest.mark.parametrize(
    "network",
    [
        ResNet(outputs=5, channels=(4, 8), blocks=1, groups=4),
        Mixer(outputs=5, width=8, token_inner=4, channel_inner=16, layers=1),
        ConvAutoencoder(channels=(4, 6), code=3),
    ],
    ids=lambda n: type(n).__name__,
)
def test_networks_of_the_medium_suite_learn(network):
    images = jnp.broadcast_to(jax.random.uniform(KEY, (6, 1, 1, 3)), (6, 8, 8, 3))
    params, state = network.init(KEY, (8, 8, 3))
    goal = jnp.arange(6) % 5

    @jax.jit
    def loss(params):
        out, _ = network.apply(params, state, images)
        if out.ndim == 4:
            assert out.shape == images.shape
            return jnp.mean(jnp.square(out - images))
        logs = jax.nn.log_softmax(out)
        return -jnp.mean(logs[jnp.arange(6), goal])

    grad = jax.jit(jax.grad(loss))
    first = loss(params)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(grad(params)))
    adam = optax.adam(1e-2)
    moments, step = adam.init(params), jax.jit(adam.update)
    for _ in range(60):
        updates, moments = step(grad(params), moments)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 0.9 * first


def test_group_norm_is_layer_norm_over_positions_and_a_group():
    x = jax.random.normal(KEY, (2, 3, 3, 8)) * 5 + 2
    ones = {"scale": jnp.ones(8), "offset": jnp.zeros(8)}
    y = np.asarray(group_norm(ones, x, 4)).reshape(2, 9, 4, 2)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 3)), 1, rtol=1e-3)


def test_the_medium_suite_is_of_real_size_and_a_fraction_of_it_is_shorter():
    whole = evaluate.suite_problems("medium")
    assert len(whole) == 6
    assert all(2_000 <= p.config.num_steps <= 5_000 for p in whole)
    part = evaluate.suite_problems("medium", fraction=0.05)
    assert [p.config.num_steps for p in part] == [150] * 5 + [100]
    settings: Any = (
        {"fraction": 0.0},
        {"fraction": 2.0},
        {"fraction": 0.5, "num_steps": 9},
    )
    for bad in settings:
        with pytest.raises(ConfigError, match="fraction"):
            evaluate.suite_problems("medium", **bad)
