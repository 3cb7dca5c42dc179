"""Reparametrisation: the same function, other scales."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_compilation  # noqa: F401

from lopax._core.errors import ConfigError
from lopax._core.task import SingleTask, Task
from lopax.tasks import Reparametrised, supervised_family
from lopax.tasks.augment import LEVELS, MIXED_RANGES

KEY = jax.random.key(0)


class Regression(Task):
    """y = w x + b, three numbers wide, started away from zero everywhere."""

    def init(self, key):
        w, b = jnp.split(1.0 + jax.random.uniform(key, (12,)), [9])
        return {"w": w.reshape(3, 3), "b": b}, {"seen": jnp.int32(0)}

    def batch(self, key, split="train"):
        shift = {"train": 0.0, "valid": 1.0, "test": 2.0}[split]
        return jax.random.normal(key, (4, 2, 3)) + shift

    def loss(self, params, task_state, key, batch):
        del key
        error = batch[:, 0] @ params["w"] + params["b"] - batch[:, 1]
        return jnp.mean(jnp.square(error)), {"seen": task_state["seen"] + 1}

    def metrics(self, params, task_state, key, split):
        return {"batch": jnp.sum(self.batch(key, split)), "w": jnp.sum(params["w"])}


@pytest.fixture(scope="module")
def digits():
    return supervised_family("mlp", ("digits",), batch_size=16)


@pytest.fixture(scope="module")
def shapes(digits):
    return jax.eval_shape(lambda k: digits.task({"dataset": 0}).init(k)[0], KEY)


@pytest.mark.parametrize("level", [x for x in LEVELS if x != "none"])
def test_function_is_unchanged_and_the_gradient_follows_the_chain_rule(level):
    base = Regression()
    family = Reparametrised(SingleTask(base), level, 0.1, 10.0)
    step_key = jax.random.key(3)

    @jax.jit
    def both(key):
        task = family.task(family.sample(key))
        params, state = task.init(key)
        base_params, base_state = base.init(key)
        loss, grads, after = task.value_and_grad(params, state, step_key)
        expected = base.value_and_grad(base_params, base_state, step_key)

        def on_batch(params):
            batch_key, loss_key = jax.random.split(step_key)
            return task.loss(params, state, loss_key, task.batch(batch_key))[0]

        tau = jax.tree.map(jnp.divide, base_params, params)
        return {
            "loss": (loss, expected[0]),
            "gradient": (grads, jax.tree.map(jnp.multiply, expected[1], tau)),
            "autodiff": jax.value_and_grad(on_batch)(params),
            "state": (after, expected[2]),
            "evaluate": (
                task.evaluate(params, state, step_key, "valid"),
                base.evaluate(base_params, base_state, step_key, "valid"),
            ),
            "metrics": (
                task.metrics(params, state, step_key, "test"),
                base.metrics(base_params, base_state, step_key, "test"),
            ),
            "tau": tau,
        }

    # The mixed level may draw "none": look at a few keys, one of them not "none".
    spread = []
    for i in range(4):
        found = both(jax.random.key(i))
        tau = found.pop("tau")
        spread.append(max(float(jnp.max(jnp.abs(t - 1))) for t in jax.tree.leaves(tau)))
        found["autodiff"] = (
            found["autodiff"],
            (found["loss"][1], found["gradient"][1]),
        )
        for name, (a, b) in found.items():
            jax.tree.map(
                lambda x, y, name=name: np.testing.assert_allclose(
                    x, y, rtol=1e-4, atol=1e-6 * np.abs(y).max(), err_msg=name
                ),
                a,
                b,
            )
    assert max(spread) > 0.1


def test_level_none_is_the_base_task(digits):
    family = Reparametrised(digits, "none")
    config = family.sample(KEY, jnp.int32(0))
    assert set(config) == {"base"}
    assert type(family.task(config)) is type(digits.task(config["base"]))


def test_the_base_tasks_own_gradient_is_used():
    class Odd(Regression):
        def value_and_grad(self, params, task_state, key, split="train"):
            del key, split
            return jnp.float32(1.0), jax.tree.map(jnp.ones_like, params), task_state

    task = Reparametrised(SingleTask(Odd()), "global").task(
        {"base": (), "tau": jnp.float32(7.0)}
    )
    loss, grads, _ = task.value_and_grad(*task.init(KEY), KEY)
    assert float(loss) == 1.0
    np.testing.assert_allclose(grads["w"], 7.0)


def test_bfloat16_parameters_keep_their_type():
    class Small(Regression):
        def init(self, key):
            params, state = super().init(key)
            return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), state

    family = Reparametrised(SingleTask(Small()), "tensor")
    task = family.task(family.sample(KEY))
    params, state = task.init(KEY)
    _, grads, _ = task.value_and_grad(params, state, KEY)
    assert {x.dtype for x in jax.tree.leaves((params, grads))} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_normaliser_is_the_base_tasks(digits):
    family = Reparametrised(digits)
    task = family.task({"base": {"dataset": 0}, "tau": jnp.float32(100.0)})
    bound = 1.5 * math.log(10)
    assert task.loss_bound == pytest.approx(bound)
    for loss, expected in ((1.0, 1.0), (99.0, bound), (math.nan, bound)):
        assert float(task.normalize(jnp.float32(loss))) == pytest.approx(expected)


def _log_taus(family, count=400):
    keys = jax.random.split(jax.random.key(1), count)
    taus = jax.jit(jax.vmap(lambda k: family.sample(k)["tau"]))(keys)
    return jax.tree.map(np.log, taus)


def _looks_uniform(sample, low, high):
    """Kolmogorov-Smirnov against U(ln low, ln high) at about 1 in 10^4."""
    u = np.sort((sample.ravel() - math.log(low)) / (math.log(high) - math.log(low)))
    grid = np.arange(1, u.size + 1) / u.size
    assert np.all((u > -1e-6) & (u < 1 + 1e-6))
    assert np.max(np.abs(u - grid)) < 2.2 / math.sqrt(u.size)


def test_global_is_one_log_uniform_scalar(digits):
    tau = _log_taus(Reparametrised(digits, "global"))
    assert tau.shape == (400,)
    _looks_uniform(tau, 1e-3, 1e3)


def test_tensor_is_one_scalar_each_independent(digits, shapes):
    tau = _log_taus(Reparametrised(digits, "tensor", 1e-2, 1e2))
    assert jax.tree.structure(tau) == jax.tree.structure(shapes)
    leaves = np.stack(jax.tree.leaves(tau))
    assert leaves.shape == (4, 400)
    _looks_uniform(leaves, 1e-2, 1e2)
    assert np.abs(np.corrcoef(leaves) - np.eye(4)).max() < 0.2


def test_parameter_has_the_tensors_shapes(digits, shapes):
    tau = _log_taus(Reparametrised(digits, "parameter", 0.1, 10.0), count=8)
    assert jax.tree.map(lambda t: t.shape[1:], tau) == jax.tree.map(
        lambda s: s.shape, shapes
    )
    w = tau["layer0"]["w"]
    _looks_uniform(w, 0.1, 10.0)
    assert abs(np.corrcoef(w[0].ravel(), w[1].ravel())[0, 1]) < 0.1


def test_mixed_draws_each_level_with_its_weight_and_interval(digits):
    count = 700
    tau = _log_taus(Reparametrised(digits, "mixed"), count)
    first, second = tau["layer0"]["w"], tau["layer1"]["w"]
    spread = np.ptp(first.reshape(count, -1), axis=1)
    flat, one = first.reshape(count, -1)[:, 0], second.reshape(count, -1)[:, 0]
    kinds = np.where(
        spread > 0,
        "parameter",
        np.where(flat != one, "tensor", np.where(flat == 0, "none", "global")),
    )
    expected = {"none": 2 / 7, "global": 2 / 7, "tensor": 2 / 7, "parameter": 1 / 7}
    for kind, share in expected.items():
        sigma = math.sqrt(share * (1 - share) / count)
        assert abs(np.mean(kinds == kind) - share) < 4.5 * sigma, kind
    for kind, (low, high) in MIXED_RANGES.items():
        _looks_uniform(flat[kinds == kind], low, high)


def test_configurations_run_vmapped_and_keep_the_strata():
    base = supervised_family("mlp", ("digits", "digits"), batch_size=8)
    family = Reparametrised(base, "mixed")
    assert family.num_strata == 2

    @jax.jit
    def run(family, keys, strata):
        def one(key, stratum):
            config = family.sample(key, stratum)
            task = family.task(config)
            loss, _, _ = task.value_and_grad(*task.init(key), key)
            return loss, config["base"]["dataset"], config["tau"]["layer0"]["w"]

        return jax.vmap(one)(keys, strata)

    losses, strata, tau = run(family, jax.random.split(KEY, 4), jnp.arange(4) % 2)
    assert np.all((losses > 1.5) & (losses < 4.0))  # all start at a guess
    np.testing.assert_array_equal(strata, [0, 1, 0, 1])
    assert tau.shape == (4, 64, 32)


def test_bad_settings(digits):
    with pytest.raises(ConfigError, match="level"):
        Reparametrised(digits, "layer")
    with pytest.raises(ConfigError, match="low = 0"):
        Reparametrised(digits, low=0)
    with pytest.raises(ConfigError, match=r"high = 0\.1"):
        Reparametrised(digits, low=1.0, high=0.1)
    with pytest.raises(ConfigError, match="high = inf"):
        Reparametrised(digits, high=math.inf)
