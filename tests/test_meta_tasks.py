"""What meta-training optimises: log losses, emphasis, task groups, given starts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import LearnedRate, Parabola, ParabolaFamily, parabola_losses

from lopax._core.errors import ConfigError, UnknownName
from lopax._core.run import Run
from lopax.architectures import architecture
from lopax.architectures.described import XP
from lopax.architectures.jax_ops import JaxDraw
from lopax.estimators import FullGradient, Horizon, Mixture, ParticleSettings, Unroller
from lopax.meta import EstimatorConfig, RunConfig, TasksConfig, build_families
from lopax.meta.trainer import build_estimator
from lopax.rules import scheduler
from lopax.tasks import LogLoss, SingleTask, supervised_family

THETA = LearnedRate().init_theta(None)


def estimator(steps: int, particles: int = 2, family=None, emphasis: float = 0.0):
    unroller = Unroller(
        optimizer=LearnedRate(),
        family=family or ParabolaFamily(),
        horizon=Horizon(low=steps, high=steps, staggered=False),
        emphasis=emphasis,
    )
    settings = ParticleSettings(num_particles=particles)
    return FullGradient(unroller=unroller, settings=settings)


def estimate(made):
    key = jax.random.key(0)
    grad, _, info = made.step(THETA, made.init(THETA, key), key)
    return float(grad["rate"][0]), float(info.loss), float(info.inner_steps)


class TestLogLoss:
    def test_is_the_logarithm_of_the_share_of_the_bound(self):
        task = LogLoss(SingleTask(Parabola()), floor=1e-3).task(())
        bound = Parabola().loss_bound
        for loss in (0.0, 0.3, bound / 2, bound):
            expected = np.log(1e-3 + loss / bound)
            found = task.normalize(jnp.float32(loss))
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_stays_bounded(self):
        task = LogLoss(SingleTask(Parabola())).task(())
        worst = float(task.normalize(jnp.float32(jnp.inf)))
        assert worst == pytest.approx(np.log(1.001), abs=1e-6)
        assert float(task.normalize(jnp.float32(jnp.nan))) == worst
        assert float(task.normalize(jnp.float32(-5.0))) == pytest.approx(
            np.log(1e-3), abs=1e-5
        )

    def test_training_itself_is_unchanged(self):
        family = supervised_family("mlp", ("digits",), batch_size=8)
        plain, logged = (
            family.task({"dataset": 0}),
            LogLoss(family).task({"dataset": 0}),
        )
        params, state = plain.init(jax.random.key(0))
        for method in ("value_and_grad", "init", "metrics", "evaluate"):
            args = {
                "init": (jax.random.key(0),),
                "value_and_grad": (params, state, jax.random.key(1)),
            }.get(method, (params, state, jax.random.key(1), "valid"))
            a, b = getattr(plain, method)(*args), getattr(logged, method)(*args)
            assert jax.tree.all(jax.tree.map(jnp.array_equal, a, b)), method

    def test_floor_must_be_positive(self):
        with pytest.raises(ConfigError, match="floor"):
            LogLoss(ParabolaFamily(), floor=0.0)


def test_emphasis_weighs_later_losses_and_is_one_on_average():
    steps, power = 5, 2.0
    losses = parabola_losses(np.full(steps, -1.0))
    done = (np.arange(steps) + 1) / steps
    weights = (1 + power) * done**power
    _, found, _ = estimate(estimator(steps, emphasis=power))
    np.testing.assert_allclose(found, np.mean(weights * losses), rtol=1e-5)
    _, plain, _ = estimate(estimator(steps))
    np.testing.assert_allclose(plain, np.mean(losses), rtol=1e-5)
    fine = (np.arange(10_000) + 1) / 10_000
    assert np.mean((1 + power) * fine**power) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ConfigError, match="emphasis"):
        estimator(steps, emphasis=-1.0)


def test_a_mixture_is_the_mean_of_its_parts():
    parts = [estimator(3), estimator(6, particles=4)]
    grads, losses, steps = zip(*(estimate(p) for p in parts), strict=True)
    grad, loss, count = estimate(Mixture(parts=parts))
    np.testing.assert_allclose(grad, np.mean(grads), rtol=1e-6)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    assert count == sum(steps)
    assert Mixture(parts=parts).uses_backprop
    with pytest.raises(ConfigError, match="at least one"):
        Mixture(parts=[])


class TestGroups:
    def test_each_group_gets_its_share_of_the_particles(self):
        groups = (
            TasksConfig(datasets=("digits",), settings={"hidden": (3,)}),
            TasksConfig(
                datasets=("digits",),
                network="autoencoder",
                settings={"hidden": (3,)},
                meta_loss="log",
            ),
        )
        families = build_families(groups)
        config = EstimatorConfig(particles=6)
        rule = architecture("learned_sgd")
        made = build_estimator(config, rule, families, ("*",))
        assert isinstance(made, Mixture)
        parts: Any = made.parts
        assert [p.settings.num_particles for p in parts] == [3, 3]
        with pytest.raises(ConfigError, match="multiple of the 2 groups"):
            odd = dataclasses.replace(config, particles=7)
            build_estimator(odd, rule, families, ("*",))

    def test_bad_groups(self):
        with pytest.raises(ConfigError, match="at least one group"):
            RunConfig(tasks=())
        with pytest.raises(ConfigError, match="network"):
            TasksConfig(network="mpl")
        with pytest.raises(UnknownName, match="hiden"):
            build_families((TasksConfig(datasets=("digits",), settings={"hiden": 3}),))
        with pytest.raises(ConfigError, match="takes one data set"):
            supervised_family("recurrent", ("sklearn_descr", "sklearn_descr"))
        with pytest.raises(UnknownName, match="autoencoder"):
            supervised_family("autoencode", ("digits",))


@pytest.mark.parametrize("network", ["conv", "autoencoder", "recurrent", "transformer"])
def test_other_networks_make_families_too(network):
    text = network in ("recurrent", "transformer")
    family = supervised_family(
        network, ("sklearn_descr" if text else "digits",), batch_size=2
    )
    task = family.task(family.sample(jax.random.key(0)))
    params, state = jax.eval_shape(task.init, jax.random.key(0))
    loss, grads, _ = jax.eval_shape(
        task.value_and_grad, params, state, jax.random.key(0)
    )
    assert loss.shape == ()
    assert jax.tree.structure(grads) == jax.tree.structure(params)


class TestGivenSchedule:
    def multipliers(self, theta, steps: int, losses) -> np.ndarray:
        def body(state, inputs):
            fraction, loss = inputs
            return scheduler.advance(XP, theta, state, Run(loss, fraction, None, None))

        fractions = jnp.arange(steps) / steps
        start = scheduler.init(XP, theta, jnp.asarray(steps))
        return np.asarray(jax.lax.scan(body, start, (fractions, losses))[1])

    def test_a_fresh_scheduler_follows_it_whatever_the_losses(self):
        random = scheduler.init_theta(JaxDraw(), jax.random.key(0), 64)
        falling = scheduler.falling(3.0, 0.05)
        theta = scheduler.fit_to_schedule(JaxDraw(), random, 64, falling)
        wanted = 3.0 * (0.05 / 3.0) ** (np.arange(200) / 200)
        noise = jax.random.uniform(jax.random.key(1), (200,))
        for losses in (jnp.ones(200), 2.0 * noise, jnp.linspace(5.0, 0.1, 200)):
            found = self.multipliers(theta, 200, losses)
            np.testing.assert_allclose(found, wanted, rtol=0.35)
        untouched = self.multipliers(random, 200, jnp.ones(200))
        assert np.max(np.abs(untouched / wanted - 1.0)) > 0.9

    def test_needs_a_unit_per_feature(self):
        with pytest.raises(ConfigError, match="at least 18 units"):
            rule = architecture("celo_adam", lstm=17, start="falling")
            rule.init_theta(jax.random.key(0))
