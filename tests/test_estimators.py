"""Gradient estimators: exact answers, statistics with seeded bounds, invariances."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from shared_files import golden
from toy import LearnedRate, ParabolaFamily, parabola_losses, smoothed_gradient

from lopax._core.errors import ConfigError
from lopax._core.task import TaskFamily
from lopax.estimators import (
    ESTIMATORS,
    NRES,
    PES,
    FullES,
    FullGradient,
    Horizon,
    ParticleSettings,
    TruncatedBackprop,
    TruncatedES,
    Unroller,
)
from lopax.estimators.antithetic import combine, difference_weights
from lopax.estimators.particles import AXIS

THETA = LearnedRate().init_theta(None)


def unroller(low: int, high: int | None = None, **changes) -> Unroller:
    horizon = Horizon(low=low, high=high or low, staggered=False)
    parts = {"optimizer": LearnedRate(), "family": ParabolaFamily(), "horizon": horizon}
    return Unroller(**{**parts, **changes})


def rate(gradient) -> float:
    return float(gradient["rate"][0])


def run(estimator, steps: int = 1, seed: int = 0):
    """Gradients, infos and the last state of `steps` estimates at a fixed theta."""

    def body(state, key):
        grad, state, info = estimator.step(THETA, state, key)
        return state, (grad, info)

    @jax.jit
    def go(key):
        start, *keys = jax.random.split(key, steps + 1)
        state = estimator.init(THETA, start)
        return jax.lax.scan(body, state, jnp.stack(keys))

    state, (grads, infos) = go(jax.random.key(seed))
    return grads, infos, state


# PES arithmetic


@pytest.mark.parametrize(("suffix", "sign"), [("", None), ("_sign", 1.0)])
def test_pes_estimate_equals_the_published_one(suffix: str, sign: float | None):
    file = golden("pes_gradient")
    losses = jnp.stack([file["loss_pos"], file["loss_neg"]], -1)
    weights = difference_weights(losses, jnp.asarray(file["is_done"]), sign)
    noise = [jnp.asarray(file[f"perturbation/{k}"]) for k in "bw"]
    accumulator = [jnp.asarray(file[f"accumulator/{k}"]) for k in "bw"]
    total = [a + e for a, e in zip(accumulator, noise, strict=True)]
    grad, following = combine(weights, noise, total, file["std"])
    for g, a, k in zip(grad, following, "bw", strict=True):
        np.testing.assert_allclose(g / 6, file[f"grad{suffix}/{k}"], rtol=2e-5)
        np.testing.assert_array_equal(a, file[f"next_accumulator{suffix}/{k}"])


def test_losses_after_a_reset_are_credited_to_the_new_noise_only():
    losses = jnp.zeros((4, 1, 2)).at[0, 0, 0].set(1.0).at[3, 0, 0].set(6.0)
    done = jnp.zeros((4, 1), bool).at[1, 0].set(True)
    weights = difference_weights(losses, done)
    noise, total = [jnp.asarray([[1.0]])], [jnp.asarray([[11.0]])]
    grad, following = combine(weights, noise, total, 1.0)
    # Three valid steps; the first difference sees 11, the last only 1.
    np.testing.assert_allclose(grad[0], [0.5 * (1.0 / 3 * 11 + 6.0 / 3 * 1)], 1e-6)
    np.testing.assert_allclose(following[0], [[1.0]])


def test_nonfinite_differences_count_as_zero():
    losses = jnp.asarray([[[jnp.inf, 1.0]], [[2.0, 1.0]], [[jnp.nan, 1.0]]])
    weights = difference_weights(losses, jnp.zeros((3, 1), bool))
    np.testing.assert_allclose(weights.before, [1.0 / 3])


def test_swapping_the_pair_turns_the_sign():
    losses = jax.random.normal(jax.random.key(0), (5, 3, 2))
    done = jnp.zeros((5, 3), bool)
    there = difference_weights(losses, done)
    back = difference_weights(losses[..., ::-1], done)
    np.testing.assert_allclose(there.before, -back.before)


# Expectations: many particles against quadrature. A bound is five standard errors,
# and the test below checks that it is narrow enough to notice a bias.

MANY = 20_000


def check_mean(samples: np.ndarray, expected: float, narrow: float):
    error = 5.0 * samples.std() / np.sqrt(samples.size)
    assert error < narrow * abs(expected), "the test has no power"
    assert abs(samples.mean() - expected) < error


def by_particle(estimator, windows: int) -> list[np.ndarray]:
    """Per-window gradient samples: each of many estimators of one particle."""

    def one(key):
        keys = jax.random.split(key, windows + 1)
        state, found = estimator.init(THETA, keys[0]), []
        for k in keys[1:]:
            grad, state, _ = estimator.step(THETA, state, k)
            found.append(grad["rate"][0])
        return jnp.stack(found)

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), MANY))
    return list(np.asarray(samples, np.float64).T)


def test_full_es_is_unbiased_for_the_smoothed_loss():
    sigma = 0.3
    expected = smoothed_gradient(
        lambda z: parabola_losses(np.repeat(z, 6)).mean(), 1, sigma
    )
    es = FullES(
        unroller=unroller(6), settings=ParticleSettings(num_particles=1), sigma=sigma
    )
    check_mean(by_particle(es, 1)[0], expected, 0.1)


def test_pes_is_unbiased_over_windows_and_truncated_es_is_not():
    """Two windows of four steps; a run is seven steps and a reset, so windows stay
    aligned. The objective PES differentiates perturbs each window independently."""
    sigma, length = 0.3, 4

    def second_window(z: np.ndarray) -> float:
        return parabola_losses(np.repeat(z, length))[length : 2 * length - 1].mean()

    expected = smoothed_gradient(second_window, 2, sigma)
    parts = {
        "unroller": unroller(2 * length - 1),
        "settings": ParticleSettings(num_particles=1),
        "truncation": length,
        "sigma": sigma,
    }
    samples = by_particle(PES(**parts), 4)
    check_mean(samples[1], expected, 0.2)
    check_mean(samples[3], expected, 0.4)  # the next run, after the reset
    short_sighted = by_particle(TruncatedES(**parts), 2)[1]
    gap = abs(short_sighted.mean() - expected)
    assert gap > 10.0 * short_sighted.std() / np.sqrt(MANY)


def test_noise_reuse_is_unbiased_over_windows():
    """As above, but the whole run moves by one perturbation."""
    sigma, length = 0.3, 4

    def second_window(z: np.ndarray) -> float:
        rates = np.repeat(z, 2 * length)
        return parabola_losses(rates)[length : 2 * length - 1].mean()

    expected = smoothed_gradient(second_window, 1, sigma)
    parts = {
        "unroller": unroller(2 * length - 1),
        "settings": ParticleSettings(num_particles=1),
        "truncation": length,
        "sigma": sigma,
    }
    samples = by_particle(NRES(**parts), 4)
    check_mean(samples[1], expected, 0.2)
    check_mean(samples[3], expected, 0.2)  # the next run, after the reset


class Jump(LearnedRate):
    """Forgets at once: every update sets x to theta["rate"]."""

    def update(self, theta, grads, state, params, *, value=None, **extra):
        _, state, info = super().update(theta, grads, state, params, value=value)
        return {"x": theta["rate"][0] - params["x"]}, state, info


def test_the_variance_of_noise_reuse_does_not_grow_with_the_windows():
    """Where losses depend on the last noise only, PES multiplies them with the noise of
    all windows so far. (A window's first loss is still that of the noise before.)"""
    parts = {
        "unroller": unroller(100, optimizer=Jump()),
        "settings": ParticleSettings(num_particles=1),
        "truncation": 3,
        "sigma": 0.1,
    }
    reused, persistent = (by_particle(e(**parts), 5) for e in (NRES, PES))
    for windows, (a, b) in enumerate(zip(reused, persistent, strict=True), 1):
        if windows > 1:  # the first begins at x = 1 whatever the noise
            assert abs(a.mean() - b.mean()) < 0.1
            # Gaussian noise: var (c e)(1 e) = |c|^2 w + (sum c)^2, c = (.., 1/3, 2/3).
            ratio = (5 / 9 * windows + 1) / 2
            assert b.var() / a.var() == pytest.approx(ratio, rel=0.08)


def test_noise_is_kept_for_a_run_and_changes_at_its_end():
    """Runs of six steps and a reset, in windows of four: the first run ends inside the
    second window, the second run with the third."""
    nres = NRES(
        unroller=unroller(6),
        settings=ParticleSettings(num_particles=3),
        truncation=4,
        sigma=0.3,
    )
    states = [nres.init(THETA, jax.random.key(0))]
    step = jax.jit(nres.step)
    for i in range(3):
        states.append(step(THETA, states[-1], jax.random.key(1 + i))[1])
    noise = [np.asarray(s.accumulator[0])[:, 0] for s in states]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert np.all(noise[1] != noise[2])
    np.testing.assert_array_equal(noise[2], noise[3])
    for steps, state, e in ((4, states[1], noise[0]), (5, states[3], noise[2])):
        np.testing.assert_array_equal(state.particles.step, steps)
        shrink = 1.0 - np.exp(-1.0 + np.stack([e, -e], 1))
        np.testing.assert_allclose(
            state.particles.inner.params["x"], shrink**steps, rtol=1e-4, atol=1e-6
        )


def test_one_estimator_has_two_names():
    assert ESTIMATORS["es_single"] is ESTIMATORS["nres"] is NRES


def test_pes_equals_es_when_one_window_covers_the_unroll():
    parts = {
        "unroller": unroller(5),
        "settings": ParticleSettings(num_particles=8),
        "truncation": 5,
        "sigma": 0.1,
    }
    pes, _, _ = run(PES(**parts))
    es, _, _ = run(TruncatedES(**parts))
    full, _, _ = run(
        FullES(unroller=unroller(5), settings=parts["settings"], sigma=0.1)
    )
    np.testing.assert_allclose(pes["rate"], es["rate"], rtol=1e-5)
    np.testing.assert_allclose(pes["rate"], full["rate"], rtol=1e-4)


def test_back_propagation_is_exact():
    h = 1e-4
    base = np.full(6, -1.0)
    slope = (parabola_losses(base + h) - parabola_losses(base - h)) / (2 * h)
    settings = ParticleSettings(num_particles=2)
    full, _, _ = run(FullGradient(unroller=unroller(6), settings=settings))
    np.testing.assert_allclose(full["rate"][0], slope.mean(), rtol=1e-3)
    windows, _, _ = run(
        TruncatedBackprop(unroller=unroller(100), settings=settings, truncation=3), 2
    )
    np.testing.assert_allclose(windows["rate"][0], slope[:3].mean(), rtol=1e-3)
    # The second window starts where the first ended and does not see through it.
    x3 = 1.0 - np.exp(-1.0)
    np.testing.assert_allclose(windows["rate"][1], x3**6 * slope[:3].mean(), rtol=1e-3)


# What every estimator must do.

NAMES = [name for name in ESTIMATORS if name != "es_single"]  # another name of nres
WINDOW_ES = ("pes", "nres", "truncated_es")


def tiny(name: str, **settings) -> Any:
    make: Any = ESTIMATORS[name]
    parts = {
        "unroller": unroller(6),
        "settings": ParticleSettings(**{"num_particles": 8, **settings}),
    }
    names = {f.name for f in dataclasses.fields(make)}
    return make(**parts, **({"truncation": 4} if "truncation" in names else {}))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_leaves_get_no_gradient_and_no_noise(name: str):
    grads, _, state = run(tiny(name, trainable=("unused",)), 3)
    np.testing.assert_array_equal(grads["rate"], 0.0)
    if name in WINDOW_ES:
        # Both trajectories of every pair ran with the same rate.
        x = state.particles.inner.params["x"]
        np.testing.assert_array_equal(x[:, 0], x[:, 1])


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_devices_do_not_change_the_estimate(name: str):
    mesh = Mesh(np.asarray(jax.devices()[:4]), (AXIS,))
    whole, infos, _ = run(tiny(name), 4)
    for layout in ({"chunk": 3}, {"mesh": mesh}, {"mesh": mesh, "chunk": 1}):
        other, other_infos, _ = run(tiny(name, **layout), 4)
        np.testing.assert_allclose(whole["rate"], other["rate"], rtol=2e-4)
        np.testing.assert_allclose(infos.inner_steps, other_infos.inner_steps)


@pytest.mark.parametrize("name", NAMES)
def test_inner_steps_are_counted(name: str):
    _, infos, _ = run(tiny(name), 4)
    copies = 1 if ESTIMATORS[name].uses_backprop else 2
    windows = name in (*WINDOW_ES, "truncated_backprop")
    # Windows of 4 over runs of 6 steps and a reset: the reset is no inner step.
    expected = [4, 3, 4, 3] if windows else [6] * 4
    if name == "pipeline_backprop":  # whole windows; resets happen between them
        expected = [4] * 4
    np.testing.assert_allclose(infos.inner_steps, 8.0 * copies * np.asarray(expected))


class Exploding(TaskFamily):
    """A parabola whose loss is NaN away from its start."""

    def sample(self, key, stratum=None):
        return ParabolaFamily().sample(key, stratum)

    def task(self, config):
        class Task(type(ParabolaFamily().task(config))):
            def loss(self, params, task_state, key, batch):
                loss, task_state = super().loss(params, task_state, key, batch)
                return jnp.where(params["x"] < 1.0, jnp.nan, loss), task_state

        return Task()


@pytest.mark.parametrize("name", [*WINDOW_ES, "full_es"])
def test_diverging_inner_problems_stay_bounded_and_are_counted(name: str):
    estimator = tiny(name)
    broken = dataclasses.replace(estimator.unroller, family=Exploding())
    grads, infos, _ = run(dataclasses.replace(estimator, unroller=broken), 2)
    assert np.all(np.isfinite(grads["rate"]))
    assert np.all(np.isfinite(infos.loss))
    assert float(infos.diverged[0]) > 0


def test_horizons_are_log_uniform_and_staggered():
    horizon = Horizon(low=100, high=2000)
    keys = jax.random.split(jax.random.key(0), 4000)
    lengths = np.asarray(jax.vmap(horizon.sample)(keys))
    assert lengths.min() >= 100
    assert lengths.max() <= 2000
    # The median of a log-uniform law is the geometric mean of its ends.
    assert abs(np.median(lengths) - np.sqrt(100 * 2000)) < 30
    starts = np.asarray(jax.vmap(horizon.sample_start)(keys))
    assert abs(starts.mean() - 1000) < 50


def test_resets_are_staggered_per_particle():
    u = dataclasses.replace(unroller(6), horizon=Horizon(low=3, high=12))
    pes = PES(unroller=u, settings=ParticleSettings(num_particles=16), truncation=4)
    _, infos, state = run(pes, 6)
    assert len(set(np.asarray(state.particles.step).tolist())) > 3
    assert len(set(np.asarray(state.particles.horizon).tolist())) > 3
    assert float(infos.finished.sum()) > 16


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="sigma"):
        PES(unroller=unroller(5), settings=ParticleSettings(), sigma=0.0)
    with pytest.raises(ConfigError, match="low = 9: must be <= high = 3"):
        Horizon(low=9, high=3)
    with pytest.raises(ConfigError, match="one fixed horizon"):
        FullGradient(unroller=unroller(3, 9), settings=ParticleSettings())
    with pytest.raises(ConfigError, match="chunk = 0"):
        ParticleSettings(num_particles=8, chunk=0)
    with pytest.raises(ConfigError, match=r"'rats' matches no meta-parameter.*rate"):
        run(tiny("pes", trainable=("rats",)))
