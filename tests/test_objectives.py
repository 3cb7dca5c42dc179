"""What the meta-loss is taken on, and what of validation data a rule is shown."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_jit
from toy import LearnedRate, Parabola, ParabolaFamily

from lopax._core.errors import ConfigError
from lopax._core.task import SingleTask, TaskFamily
from lopax.architectures import architecture
from lopax.architectures.described import XP
from lopax.estimators import (
    PES,
    Flatness,
    FullES,
    Horizon,
    Objective,
    ParticleSettings,
    TruncatedBackprop,
    Unroller,
)
from lopax.estimators.objective import KINDS, SPLITS
from lopax.estimators.observers import Observer, ShowValidation
from lopax.meta import EstimatorConfig, TasksConfig, build_families
from lopax.meta.trainer import build_estimator
from lopax.rules import loss_normalizer

THETA = LearnedRate().init_theta(None)
SHRINK = 1.0 - np.exp(-1.0)  # of x in one step at theta
TARGETS = {"train": 0.0, "valid": 1.0, "extra_valid": 2.0, "test": 3.0}
LENGTH = 5


@dataclasses.dataclass(frozen=True)
class Splits(Parabola):
    """loss = (x - target)^2 / 2, with another target for each split."""

    def batch(self, key, split="train"):
        del key
        return TARGETS[split]

    def loss(self, params, task_state, key, batch):
        del key
        return 0.5 * jnp.square(params["x"] - batch), task_state


FAMILY = SingleTask(Splits())


def unroller(length: int = LENGTH, **changes) -> Unroller:
    parts: dict[str, Any] = {
        "optimizer": LearnedRate(),
        "family": FAMILY,
        "horizon": Horizon(low=length, high=length, staggered=False),
    }
    return Unroller(**{**parts, **changes})


def expected(kind: str, split: str) -> float:
    """The meta-loss of a run at THETA, by hand."""
    x = SHRINK ** np.arange(LENGTH + 1)
    before, after = 0.5 * x[:-1] ** 2, 0.5 * (x[1:] - TARGETS[split]) ** 2
    if kind == "last_recompute":
        return after[-1]
    losses = before if split == "train" else after
    return {"mean": losses.mean(), "last": losses[-1], "min": losses.min()}[kind]


def copies(num: int) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, 2, *x.shape)), THETA)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_runs_and_windows_have_the_same_meta_loss(kind: str, split: str):
    u = unroller(objective=Objective(kind=kind, split=split))
    strata, keys = jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(0), 2)

    @quick_jit
    def both(thetas):
        run = u.run(thetas, strata, keys)
        particles = u.start_all(thetas, keys, strata, False)
        parts = []
        for length in (2, LENGTH - 2):
            particles, window = u.window(thetas, particles, strata, keys, length)
            parts.append(window.losses)
        return run, jnp.concatenate(parts)

    run, losses = both(copies(2))
    want = expected(kind, split)
    np.testing.assert_allclose(run.losses, np.full((2, 2), want), rtol=1e-5)
    np.testing.assert_allclose(losses.mean(axis=0), run.losses, rtol=1e-5)
    np.testing.assert_array_equal(run.steps, LENGTH)


def test_the_minimum_is_that_of_the_run_not_of_the_window():
    """A rule that diverges: the first step is the best one of all."""
    fast = {**THETA, "rate": jnp.full((1,), 1.2)}
    thetas = jax.tree.map(lambda x: x[None, None], fast)
    u = unroller(objective=Objective(kind="min"))
    strata, keys = jnp.zeros(1, jnp.int32), jax.random.split(jax.random.key(0), 1)
    particles = u.start_all(thetas, keys, strata, False)
    particles, first = u.window(thetas, particles, strata, keys, 3)
    particles, second = u.window(thetas, particles, strata, keys, 2)
    np.testing.assert_allclose(first.losses[:, 0, 0], [LENGTH * 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(second.losses, 0.0)
    # A new run starts with a new minimum.
    _, third = u.window(thetas, particles, strata, keys, 2)
    np.testing.assert_allclose(third.losses[:, 0, 0], [0.0, LENGTH * 0.5])


@pytest.mark.parametrize("kind", KINDS)
def test_pes_over_one_window_equals_full_es(kind: str):
    parts: dict[str, Any] = {
        "unroller": unroller(objective=Objective(kind=kind, split="extra_valid")),
        "settings": ParticleSettings(num_particles=8),
        "sigma": 0.1,
    }
    grads = []
    for estimator in (FullES(**parts), PES(**parts, truncation=LENGTH)):
        start, now = jax.random.split(jax.random.key(0))
        state = estimator.init(THETA, start)
        grads.append(quick_jit(estimator.step)(THETA, state, now)[0]["rate"])
    assert abs(float(grads[0][0])) > 1e-3
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-4)


def test_the_gradient_of_the_last_loss_on_test_data():
    objective = Objective(kind="last", split="test")
    estimator = TruncatedBackprop(
        unroller=unroller(objective=objective),
        settings=ParticleSettings(num_particles=1),
        truncation=LENGTH,
    )
    state = estimator.init(THETA, jax.random.key(0))
    grad, _, info = jax.jit(estimator.step)(THETA, state, jax.random.key(1))

    def last(rate: float) -> float:
        return 0.5 * ((1.0 - np.exp(rate)) ** LENGTH - 3.0) ** 2

    slope = (last(-1.0 + 1e-4) - last(-1.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(grad["rate"], [slope], rtol=1e-3)
    np.testing.assert_allclose(info.loss, last(-1.0), rtol=1e-5)


def test_fresh_batches_differ_from_the_training_batch():
    """Batches are single numbers: the training batch is not looked at again, and the
    recomputed mean has its own."""

    class Noisy(Parabola):
        def batch(self, key, split="train"):
            return jax.random.normal(key)

        def loss(self, params, task_state, key, batch):
            # The gradient leaves x alone, so that only the batch shows.
            return batch + 0.0 * params["x"], task_state

    found = {}
    for kind, split in (("last", "train"), ("last", "valid"), ("last_recompute",) * 2):
        split = split if split in SPLITS else "train"
        u = unroller(
            family=SingleTask(Noisy()),
            objective=Objective(kind=kind, split=split, recompute=400),
        )
        run = u.run(
            copies(1), jnp.zeros(1, jnp.int32), jax.random.split(jax.random.key(3), 1)
        )
        found[kind, split] = float(run.losses[0, 0])
    assert len(set(found.values())) == 3
    assert abs(found["last_recompute", "train"]) < 0.2  # four standard errors


# Averaged horizons


def test_averaged_horizons_weigh_steps_as_drawn_ones_do():
    drawn = Horizon(low=3, high=12)
    averaged = dataclasses.replace(drawn, averaged=True)
    keys = jax.random.split(jax.random.key(0), 100_000)
    lengths = np.asarray(jax.vmap(drawn.sample)(keys))
    steps = np.arange(12)
    for emphasis in (0.0, 2.0):
        shares = np.minimum((steps + 1) / lengths[:, None], 1.0) ** emphasis
        weights = (1.0 + emphasis) * shares / lengths[:, None]
        want = 12 * np.where(steps < lengths[:, None], weights, 0.0).mean(axis=0)
        found = averaged.weight(jnp.asarray(steps), jnp.full(12, 12), emphasis)
        np.testing.assert_allclose(found, want, rtol=0.03)
    assert int(averaged.sample(keys[0])) == 12
    plain = Horizon(low=7, high=7, averaged=True)
    np.testing.assert_allclose(plain.weight(jnp.arange(7), None, 0.0), 1.0, rtol=1e-6)


def test_averaged_horizons_have_the_mean_gradient_of_drawn_ones():
    horizon = Horizon(low=3, high=12, staggered=False)
    settings = ParticleSettings(num_particles=20_000)

    def one(horizon: Horizon) -> float:
        es = FullES(
            unroller=unroller(family=ParabolaFamily(), horizon=horizon),
            settings=settings,
            sigma=0.1,
        )
        grad, _, _ = jax.jit(es.step)(THETA, (), jax.random.key(0))
        return float(grad["rate"][0])

    averaged = one(dataclasses.replace(horizon, averaged=True))
    np.testing.assert_allclose(averaged, one(horizon), rtol=0.03)


# Validation losses shown to the rule


class Watching(LearnedRate):
    """Remembers the validation losses it was shown, and after how many updates."""

    takes_validation: ClassVar[bool] = True

    def init(self, theta, params, num_steps=None):
        state = super().init(theta, params, num_steps)
        return {**state, "seen": jnp.full((LENGTH,), -1.0)}

    def update(self, theta, grads, state, params, **extra):
        updates, new, info = super().update(theta, grads, state, params, **extra)
        return updates, {**new, "seen": state["seen"]}, info

    def observe_validation(self, state, loss):
        return {**state, "seen": state["seen"].at[state["steps"]].set(loss)}


def test_the_validation_loss_is_shown_before_the_first_update_and_when_due():
    u = unroller(optimizer=Watching(), validation_every=2)
    strata, keys = jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(0), 2)
    particles = u.start_all(copies(2), keys, strata, False)
    # One particle is a step ahead of the other.
    ahead = u.advance(copies(2), particles, keys).particles
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), ahead, particles)
    after, _ = u.window(copies(2), mixed, strata, keys, 3)
    x = SHRINK ** np.arange(LENGTH)
    shown = 0.5 * (x - TARGETS["valid"]) ** 2
    seen = after.inner.opt_state["seen"]
    for copy in range(2):
        np.testing.assert_allclose(
            seen[0, copy], [shown[0], -1, shown[2], -1, -1], rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(
            seen[1, copy], [shown[0], -1, shown[2], -1, -1], rtol=1e-5, atol=1e-7
        )
    np.testing.assert_array_equal(after.step, [4, 3])


def test_rnn_mlp_is_not_told_a_validation_loss_of_zero():
    params = {"w": jnp.ones((2, 3))}
    updates = {}
    for unseen in ("mask", "zero"):
        rule: Any = architecture("rnn_mlp", lstm=4, hidden=4, unseen_validation=unseen)
        theta = rule.init_theta(jax.random.key(0))
        blank = rule.init(theta, params)
        update = quick_jit(functools.partial(rule.update, value=2.0))
        # The mean training loss after the update is 2: a validation loss of 2 is no
        # news, one of 0 would be.
        for name, valid in (("blank", None), ("2", 2.0), ("0", 0.0)):
            state = blank
            if valid is not None:
                common = blank.shared.common
                moments = loss_normalizer.update(
                    XP, common.valid, jnp.float32(valid), 0.95
                )
                common = common._replace(valid=moments)
                state = blank._replace(shared=blank.shared._replace(common=common))
            found, _, _ = update(theta, params, state, params)
            updates[unseen, name] = np.asarray(found["w"])
    np.testing.assert_allclose(updates["mask", "blank"], updates["mask", "2"], 1e-5)
    np.testing.assert_array_equal(updates["zero", "blank"], updates["zero", "0"])
    assert np.max(np.abs(updates["mask", "blank"] - updates["zero", "blank"])) > 1e-8
    np.testing.assert_array_equal(updates["mask", "0"], updates["zero", "0"])


def test_rnn_mlp_meta_trains_with_validation_losses():
    families = build_families(
        [
            TasksConfig(
                datasets=("digits",),
                settings={"hidden": [4], "batch_size": 8},
                augment="none",
            )
        ]
    )
    config = EstimatorConfig(
        name="pes",
        particles=2,
        truncation=3,
        horizon_low=4,
        horizon_high=4,
        chunk=2,
        objective="last_recompute",
        objective_split="extra_valid",
        recompute=2,
        validation_every=2,
        staggered=False,
    )
    rule = architecture("rnn_mlp", lstm=4, hidden=4)
    estimator = build_estimator(config, rule, families, ("*",))
    theta = rule.init_theta(jax.random.key(0))
    state = estimator.init(theta, jax.random.key(1))
    grad, state, _ = quick_jit(estimator.step)(theta, state, jax.random.key(2))
    counts = state.particles.inner.opt_state.shared.common.valid.count
    np.testing.assert_array_equal(counts, 2)  # before the first and the third update
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grad))


# Refusals


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match=r"validation_every = 3.*learned_rate.*0"):
        unroller(validation_every=3)
    with pytest.raises(ConfigError, match='need the objective "mean"'):
        unroller(objective=Objective(kind="last"), emphasis=1.0)
    with pytest.raises(ConfigError, match="averaged"):
        unroller(objective=Objective(kind="min"), horizon=Horizon(low=2, averaged=True))
    with pytest.raises(ConfigError, match=r"split = 'outer'.*'extra_valid'"):
        Objective(split="outer")
    with pytest.raises(ConfigError, match="recompute = 0"):
        Objective(recompute=0)


def test_a_split_that_a_task_does_not_have_is_named():
    family: TaskFamily = build_families(
        [TasksConfig(datasets=("sklearn_descr",), network="recurrent", augment="none")]
    )[0]
    u = unroller(family=family, objective=Objective(split="extra_valid"))
    with pytest.raises(ConfigError, match="'extra_valid': this task has 'train'"):
        jax.eval_shape(
            u.run,
            copies(1),
            jnp.zeros(1, jnp.int32),
            jax.random.split(jax.random.key(0), 1),
        )


def test_a_step_is_observed_only_as_asked():
    def names(**changes) -> list[str]:
        return [type(o).__name__ for o in unroller(**changes).observers]

    assert names() == ["Contribute", "Weigh"]
    seen = unroller(optimizer=architecture("rnn_mlp"), validation_every=2)
    assert type(seen.observers[0]) is ShowValidation
    assert names(flatness=Flatness()) == ["Contribute", "Weigh", "Penalise"]


def test_an_observer_that_does_nothing_changes_nothing():
    u = unroller()
    thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 1, *x.shape)), THETA)
    keys = jax.random.split(jax.random.key(0), 2)
    particles = u.start_all(thetas, keys, jnp.zeros(2, jnp.int32), False)
    step = u.advance(thetas, particles, keys)
    idle = Observer()
    assert idle.before(particles, keys) is particles
    assert idle.after(step, keys) is step
    np.testing.assert_array_equal(step.particles.step, particles.step + 1)
