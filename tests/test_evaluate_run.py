"""Training runs: against a plain loop, across vmap sizes, and when they go wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopax._core.errors import ConfigError, TaskError, UnknownName
from lopax._core.task import Task
from lopax.evaluate import baselines, specs
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.refs import optimizer_spec
from lopax.evaluate.runs import cost, programs
from lopax.evaluate.runs.run import run


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Regression(Task):
    """Noisy linear regression; one array leaf, a state that counts its losses."""

    truth: jax.Array  # [5]
    factor: float = dataclasses.field(default=1.0, metadata={"static": True})

    def init(self, key: Any) -> Any:
        return {"w": 0.1 * jax.random.normal(key, (5,))}, jnp.zeros((), jnp.int32)

    def batch(self, key: Any, split: str = "train") -> Any:
        inputs = jax.random.normal(key, (8, 5))
        return inputs + {"train": 0.0, "valid": 0.1, "test": 0.2}[split]

    def loss(self, params: Any, task_state: Any, key: Any, batch: Any) -> Any:
        error = batch @ (params["w"] - self.truth)
        return self.factor * jnp.mean(error**2), task_state + 1

    def metrics(self, params: Any, task_state: Any, key: Any, split: str) -> Any:
        return {"distance": jnp.linalg.norm(params["w"] - self.truth)}


TASK = Regression(jnp.arange(5.0))
CONFIG = RunConfig(num_steps=13, eval_every=5, eval_batches=2, final_batches=3)
SGD = specs.OptimizerSpec(
    name="sgd", make=lambda n, lr: optax.sgd(lr), learning_rates=(1e-2, 5e-2, 1e-1)
)


def plain_loop(learning_rate: float, seed: int) -> tuple[Any, Any]:
    """The same run, step by step and without any of the machinery."""
    init_key, train_key, _ = jax.random.split(jax.random.key(seed), 3)
    params, state = TASK.init(init_key)
    optimizer = optax.sgd(learning_rate)
    opt_state = optimizer.init(params)
    losses = []
    for t in range(CONFIG.num_steps):
        key = jax.random.fold_in(train_key, t)
        loss, grads, state = TASK.value_and_grad(params, state, key)
        losses.append(loss)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
    return np.asarray(losses), params


@pytest.fixture(scope="module")
def result():
    return run(SGD, TASK, CONFIG, [0, 3], vmap_size=4)


def test_a_run_is_the_plain_loop(result):
    assert result.train.shape == (2, 3, 13)
    losses, params = plain_loop(5e-2, seed=3)
    np.testing.assert_allclose(result.train[1, 1], losses, rtol=2e-5)
    distance = jnp.linalg.norm(params["w"] - TASK.truth)
    final = result.metrics["valid/distance"][1, 1, -1]
    np.testing.assert_allclose(final, distance, rtol=2e-5)


def test_evaluations_come_where_they_should(result):
    np.testing.assert_array_equal(result.eval_steps, [0, 5, 10, 13])
    assert result.valid.shape == result.test.shape == (2, 3, 4)
    # Before the first update all learning rates are at the same parameters ...
    np.testing.assert_allclose(
        result.valid[:, :1, 0].repeat(3, 1), result.valid[..., 0]
    )
    # ... and the test inputs are shifted further, so their loss is another one.
    assert not np.allclose(result.valid[..., 0], result.test[..., 0])
    params = TASK.init(jax.random.split(jax.random.key(0), 3)[0])[0]
    start = jnp.linalg.norm(params["w"] - TASK.truth)
    np.testing.assert_allclose(result.metrics["test/distance"][0, :, 0], start, 1e-5)


def test_counters_of_a_healthy_run(result):
    assert (result.nonfinite == 0).all()
    assert (result.updates == 13).all()
    assert not result.diverged.any()


def test_vmap_size_does_not_change_the_result(result):
    """Six trajectories in chunks of 4 (padded), and in one go."""
    seen = []
    again = run(
        SGD,
        TASK,
        CONFIG,
        [0, 3],
        vmap_size=6,
        progress=lambda d, n: seen.append((d, n)),
    )
    np.testing.assert_allclose(again.train, result.train, rtol=2e-5)
    np.testing.assert_allclose(again.test, result.test, rtol=2e-5)
    assert seen == [(6, 6)]
    one = dataclasses.replace(SGD, learning_rates=(5e-2,))
    alone = run(one, TASK, CONFIG, [0, 3], vmap_size=1)
    np.testing.assert_allclose(alone.train[:, 0], result.train[:, 1], rtol=2e-5)


def test_divergence_is_recorded_not_hidden():
    wild = specs.OptimizerSpec(
        name="wild", make=lambda n, lr: optax.sgd(lr), learning_rates=(1e-2, 1e12)
    )
    found = run(wild, TASK, CONFIG, [0])
    np.testing.assert_array_equal(found.diverged, [[False, True]])
    bad = ~np.isfinite(found.train[0, 1])
    assert found.nonfinite[0, 1] == bad.sum() > 0
    assert bad[-1]
    assert found.updates[0, 1] < 13 == found.updates[0, 0]
    assert np.isfinite(found.train[0, 0]).all()


def test_the_loss_reaches_the_optimizer_and_plain_ones_ignore_it():
    def init(params):
        return ()

    def update(grads, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda g: -0.01 * g / value, grads), state

    conditioned = optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
    spec = specs.from_transformation("conditioned", conditioned)
    found = run(spec, TASK, CONFIG, [0])
    assert found.train.shape == (1, 1, 13)
    plain = run(
        dataclasses.replace(SGD, learning_rates=(0.01,)),
        dataclasses.replace(TASK, factor=7.0),
        CONFIG,
        [0],
    )
    # The update divides the loss scale out; plain SGD on the scaled loss does not.
    assert not np.allclose(found.train[0, 0], plain.train[0, 0] / 7.0)


def test_evaluation_uses_the_averaged_parameters_of_schedule_free_methods():
    spec = baselines.baseline("schedule_free_adamw")
    spec = dataclasses.replace(spec, learning_rates=(0.3,))
    averaged = run(spec, TASK, CONFIG, [0])
    raw = run(dataclasses.replace(spec, eval_params=None), TASK, CONFIG, [0])
    np.testing.assert_allclose(averaged.train, raw.train, rtol=1e-5)
    assert not np.allclose(averaged.valid[..., -1], raw.valid[..., -1])


def test_the_learning_rate_schedule_peaks_at_the_rate_and_ends_at_zero():
    schedule: Any = baselines.warmup_cosine(100, 0.5)
    values = [float(schedule(t)) for t in range(101)]
    assert values[0] == 0.0
    assert max(values) == pytest.approx(0.5) == values[5]
    assert values[100] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_is_an_optax_transformation_with_a_traced_rate(name):
    """Traced, not compiled: shapes in, same shapes out, nothing needs a number."""
    spec = baselines.baseline(name)
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones((3,))}

    def steps(rate: Any) -> Any:
        optimizer = spec.transformation(50, rate if spec.tunable else None)
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params, value=jnp.ones(()))
        seen = params if spec.eval_params is None else spec.eval_params(after, params)
        return state, after, updates, seen

    state, after, updates, seen = jax.eval_shape(steps, jnp.float32(0.1))
    count = len(spec.learning_rates)
    assert count in (7, 15) if name in baselines.CONTEMPORARY else True
    assert count == 15 if name in baselines.PUBLISHED else True
    assert count == 0 if name in baselines.TUNING_FREE else True
    assert list(spec.learning_rates) == sorted(spec.learning_rates)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, seen) == jax.tree.map(jnp.shape, params)
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after
    )
    assert all(jax.tree.leaves(same))


def test_the_published_grid():
    rates = specs.LEARNING_RATES
    assert len(rates) == 15
    np.testing.assert_allclose(
        [rates[0], rates[1], rates[-2], rates[-1]], [1e-7, 3e-7, 0.3, 1]
    )
    assert len(baselines.PUBLISHED) == 15
    sets = baselines.PUBLISHED + baselines.CONTEMPORARY + baselines.TUNING_FREE
    assert sorted(sets) == sorted(baselines.BASELINES)


def test_a_learned_optimizer_is_run_with_its_horizon_and_hashed_by_its_weights():
    from lopax.architectures import architecture

    rule = architecture("celo")
    theta = rule.init_theta(jax.random.key(0))
    spec = specs.learned("celo", theta, label="fresh")
    assert (spec.name, spec.tunable, spec.kind) == ("fresh", False, "learned")
    state: Any = spec.transformation(123, None).init({"w": jnp.ones((5,))})
    assert int(state.num_steps) == 123
    other = jax.tree.map(lambda x: x + 1e-3, theta)
    again = specs.learned("celo", jax.tree.map(np.asarray, theta))
    assert spec.settings["weights"] == again.settings["weights"]
    assert spec.settings["weights"] != specs.learned("celo", other).settings["weights"]


def test_other_weights_of_a_rule_share_the_program_but_not_the_result():
    from lopax.architectures import architecture

    first = architecture("learned_sgd").init_theta(jax.random.key(0))
    second = jax.tree.map(lambda x: x + 2.0, first)
    programs.clear()
    found = [
        run(specs.learned("learned_sgd", theta), TASK, CONFIG, [0]).train[0, 0]
        for theta in (first, second)
    ]
    assert programs.count() == 1
    assert np.all(np.isfinite(found))
    assert not np.allclose(found[0], found[1])
    programs.clear()
    alone = run(specs.learned("learned_sgd", second), TASK, CONFIG, [0]).train[0, 0]
    np.testing.assert_array_equal(found[1], alone)


def test_a_program_that_calls_python_is_never_shared():
    """Its text does not say which function is called."""

    def spec(factor: float) -> specs.OptimizerSpec:
        def called(g: Any) -> Any:
            return np.asarray(-factor * g, np.float32)

        def update(grads: Any, params: Any) -> Any:
            shape = jax.ShapeDtypeStruct((5,), jnp.float32)
            return {"w": jax.pure_callback(called, shape, grads["w"])}

        return specs.from_transformation(f"called {factor}", optax.stateless(update))

    programs.clear()
    slow, fast = (run(spec(f), TASK, CONFIG, [0]).train[0, 0] for f in (0.01, 0.1))
    assert programs.count() == 0
    assert fast[-1] < slow[-1]


def test_a_program_with_hidden_constants_is_never_shared():
    """With this option of JAX the text does not say which numbers are meant."""
    option = "jax_use_simplified_jaxpr_constants"
    if not hasattr(jax.config, option):
        pytest.skip("this JAX has no such option")

    def value(constant: Any) -> float:
        lowered = jax.jit(lambda x: jnp.sum(x * constant)).lower(jnp.ones(1000))
        return float(programs.compiled(lowered)(jnp.ones(1000)))

    jax.config.update(option, True)
    try:
        assert [value(jnp.full(1000, c)) for c in (1.0, 2.0)] == [1000.0, 2000.0]
    finally:
        jax.config.update(option, False)


def test_an_untuned_baseline_keeps_its_rate():
    spec = baselines.default_rate("adam", 1e-3)
    assert (spec.name, spec.learning_rates) == ("adam@0.001", ())
    updates: Any
    updates, _ = spec.transformation(10, None).update(
        {"w": jnp.ones(2)}, spec.transformation(10, None).init({"w": jnp.ones(2)})
    )
    np.testing.assert_allclose(updates["w"], -1e-3, rtol=1e-4)


def test_bad_input():
    with pytest.raises(ConfigError, match="num_steps"):
        RunConfig(num_steps=0)
    with pytest.raises(ConfigError, match="different"):
        run(SGD, TASK, CONFIG, [1, 1])
    with pytest.raises(ConfigError, match="used 2 times"):
        specs.check_unique([SGD, SGD])
    with pytest.raises(ConfigError, match="positive"):
        dataclasses.replace(SGD, learning_rates=(0.1, -1.0))
    with pytest.raises(ConfigError, match="slashes"):
        dataclasses.replace(SGD, name="a/b")
    with pytest.raises(UnknownName, match="adamw"):
        baselines.baseline("adamv")

    class Broken(Regression):
        def loss(self, params, task_state, key, batch):
            return batch @ jnp.ones((3,)), task_state

    with pytest.raises(TaskError, match="does not run on this task"):
        run(SGD, Broken(TASK.truth), CONFIG, [0])


def test_cost_counts_state_and_takes_time():
    adam = dataclasses.replace(baselines.baseline("adam"), learning_rates=(1e-3,))
    found = cost.measure(adam, TASK, 13, seconds=0.01, repeats=1)
    # Two moments of five float32 and one int32 counter; scale_by_learning_rate: none.
    assert found.parameters == 5
    assert found.state_bytes == 2 * 5 * 4 + 4
    assert found.bytes_per_parameter == pytest.approx(44 / 5)
    assert found.step_ms > 0


def test_a_learned_rule_s_updates_can_be_scaled_and_scheduled():
    steps = 10
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    grads = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}

    def updates(reference: str) -> list[Any]:
        spec = optimizer_spec(reference)
        opt = spec.make(steps, None, spec.theta)
        state, found = opt.init(params), []
        for _ in range(steps):
            update, state = opt.update(grads, state, params)
            found.append(np.asarray(jax.tree.leaves(update)[0]))
        return found

    once, thrice, falling = (updates(r) for r in ("celo2", "celo2@3", "celo2@3cosine"))
    for t in range(steps):
        np.testing.assert_allclose(thrice[t], 3.0 * once[t], rtol=1e-5)
        factor = 1.5 * (1.0 + np.cos(np.pi * t / steps))
        np.testing.assert_allclose(falling[t], factor * once[t], rtol=1e-4)
    forms = ("celo2", "celo2@3", "celo2@3cosine")
    names = [str(optimizer_spec(r).identity) for r in forms]
    assert len(set(names)) == 3
    assert optimizer_spec("celo2@cosine").settings["multiplier"] == 1.0
    for bad, told in (("celo2@3linear", "celo2@2cosine"), ("celo2@-1", "must be > 0")):
        with pytest.raises(ConfigError, match=told):
            optimizer_spec(bad)
