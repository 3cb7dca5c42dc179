"""Tasks out of plain functions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_compilation  # noqa: F401

from lopax import tasks
from lopax._core.errors import ConfigError, TaskError
from lopax._core.task import Task

KEY = jax.random.key(0)


def init(key):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def squared(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


X = np.arange(60, dtype=np.float32).reshape(20, 3) / 60
DATA = (X, X.sum(1))


def test_from_functions_draws_rows_that_belong_together():
    task = tasks.from_functions(init, squared, data=DATA, batch_size=50, loss_bound=9)
    tasks.check_task(task, "mine")
    x, y = task.batch(KEY)
    assert x.shape == (50, 3)
    np.testing.assert_allclose(x.sum(1), y, rtol=1e-6)
    assert len(np.unique(x[:, 0])) > 12
    exact = {"w": jnp.ones(3), "b": jnp.zeros(())}
    assert float(task.evaluate(exact, None, KEY, "valid")) < 1e-10
    assert task.loss_bound == 9.0 and task.metrics(exact, None, KEY, "valid") == {}


def test_from_functions_with_splits_and_metrics():
    task = tasks.from_functions(
        init,
        squared,
        data={"train": DATA, "valid": (X + 1, X[:, 0])},
        metrics=lambda params, batch: {"largest": jnp.max(batch[0])},
    )
    params, _ = task.init(KEY)
    assert float(task.metrics(params, None, KEY, "valid")["largest"]) > 1
    assert float(task.metrics(params, None, KEY, "train")["largest"]) < 1
    with pytest.raises(ConfigError, match="split = 'test'"):
        task.evaluate(params, None, KEY, "test")


def test_from_functions_accepts_three_forms_of_loss():
    params = init(KEY)
    alone = tasks.from_functions(init, lambda p: jnp.sum(p["w"] ** 2))
    assert alone.batch(KEY) is None
    noisy = tasks.from_functions(
        init,
        lambda p, key, batch: p["b"] + jax.random.normal(key, ()) + 0 * batch,
        batch=lambda key: jax.random.normal(key, ()),
    )
    by_split = tasks.from_functions(
        init,
        lambda p, batch: p["b"] + batch,
        batch=lambda key, split: {"train": 1.0, "valid": 2.0}[split],
    )
    a, _, _ = noisy.value_and_grad(params, None, KEY)
    b, _, _ = noisy.value_and_grad(params, None, jax.random.key(1))
    assert float(a) != float(b)
    np.testing.assert_allclose(
        alone.value_and_grad(params, None, KEY)[1]["w"], 2 * params["w"], rtol=1e-6
    )
    assert float(by_split.evaluate(params, None, KEY, "train")) == 1.0
    assert float(by_split.evaluate(params, None, KEY, "valid")) == 2.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tasks.from_functions(3, squared), "init must be a function"),  # type: ignore[arg-type]
        (lambda: tasks.from_functions(init, lambda a, b, c, d: 0), "loss.*cannot be"),
        (lambda: tasks.from_functions(init, lambda p, *, key: 0), "loss.*cannot be"),
        (lambda: tasks.from_functions(init, squared, lambda: 0), "batch.*cannot be"),
        (lambda: tasks.from_functions(init, squared), "takes a batch"),
        (
            lambda: tasks.from_functions(init, squared, lambda k: DATA, data=DATA),
            "give one",
        ),
        (
            lambda: tasks.from_functions(
                init, lambda p, b: (squared(p, b), {}), data=DATA
            ),
            "returned tuple, must be a scalar",
        ),
        (
            lambda: tasks.from_functions(init, lambda p, b: b[1], data=DATA),
            r"shape \(64,\), must be a scalar",
        ),
        (
            lambda: tasks.from_functions(lambda k: {}, lambda p: jnp.zeros(())),
            "returned nothing",
        ),
        (
            lambda: tasks.from_functions(
                lambda k: jnp.arange(3), lambda p: jnp.zeros(())
            ),
            "int32",
        ),
        (lambda: tasks.from_functions(init, squared, data=(X, X[:3])), "share one"),
        (lambda: tasks.from_functions(init, squared, data=(X, 1.0)), "share one"),
        (lambda: tasks.from_functions(init, squared, data=(X[:0], X[:0])), "share one"),
    ],
)
def test_from_functions_errors(make, says):
    with pytest.raises(TaskError, match=says):
        make()


def test_a_nan_at_the_start_is_reported():
    task = tasks.from_functions(init, lambda p: jnp.log(p["b"] - 1.0))
    with pytest.raises(TaskError, match="at the initial parameters"):
        tasks.check_task(task, "mine")


def test_a_batch_from_an_iterator_is_refused():
    """Compiled, it would be one batch for ever."""
    rng = np.random.default_rng(0)
    batches = iter(np.ones((2,)) * i for i in range(99))

    def loss(params, batch):
        return jnp.mean(params["w"] * batch)

    def init(key):
        return {"w": jax.random.normal(key, (2,))}

    for batch in (
        lambda key: rng.normal(size=2),
        lambda key: next(batches),
        lambda key: jax.random.normal(key, (2,)) + next(batches),
    ):
        with pytest.raises(TaskError, match=r"two batches for one key.*data="):
            tasks.from_functions(init, loss, batch=batch)
    tasks.from_functions(init, loss, batch=lambda key: jnp.arange(2.0))

    @dataclasses.dataclass(frozen=True)
    class Iterated(Task):
        def init(self, key):
            return init(key), None

        def loss(self, params, task_state, key, batch):
            return loss(params, batch), task_state

        def batch(self, key, split="train"):
            return next(batches)

    with pytest.raises(TaskError, match="does not follow from the key"):
        tasks.check_task(Iterated(), "iterated")
