"""Tasks and families: contract, data they see, networks, the table of names."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import quick_compilation  # noqa: F401

from lopax import tasks
from lopax._core.errors import (
    ConfigError,
    DatasetNotFound,
    UnknownName,
)
from lopax.data import ImageDataset, prepare
from lopax.tasks import sources

KEY = jax.random.key(0)


def constant_images(name: str, base: int, n: int = 50, classes: int = 10):
    """Every pixel of image i says which data set and split it is from; the label is
    the image's number modulo ten."""

    def part(value, count):
        pixels = np.full((count, 8, 8, 1), value, np.uint8)
        pixels[:, 0, 0, 0] = np.arange(count)
        return pixels, (np.arange(count) % 10).astype(np.int32)

    train, train_labels = part(base, n)
    test, test_labels = part(base + 5, 20)
    return ImageDataset(
        name=name,
        train_images=train,
        train_labels=train_labels,
        test_images=test,
        test_labels=test_labels,
        num_classes=classes,
    )


@pytest.fixture(scope="module")
def family():
    """Two made-up data sets of different length."""
    made = (constant_images("a", 10), constant_images("b", 100, n=80))
    return tasks.supervised_family("mlp", made, batch_size=32)


# Every registered task.


@pytest.mark.parametrize("name", tasks.list_tasks())
def test_registered_tasks_keep_their_contract(name):
    if not tasks.task_available(name):
        pytest.skip(f"the data of {name} are not on this machine")
    task = tasks.task(name)
    tasks.check_task(task, name)
    assert math.isfinite(task.loss_bound) and task.loss_bound > 0


# The family of the meta-training tasks.


def test_batches_come_from_the_configured_set_and_split(family):
    @jax.jit
    def draw(family, dataset, key):
        task = family.task({"dataset": dataset})
        return {s: task.batch(key, s) for s in ("train", "valid", "test")}

    @jax.jit
    def many(family, datasets, keys):
        return jax.vmap(draw, (None, 0, 0))(family, datasets, keys)

    found = many(family, jnp.arange(40) % 2, jax.random.split(KEY, 40))
    for d, (base, n) in enumerate(((10, 50), (100, 80))):
        ranges = {"train": (0, n * 8 // 10), "valid": (n * 8 // 10, n * 9 // 10)}
        for split, (low, high) in {**ranges, "test": (0, 20)}.items():
            images, labels = (x[d::2] for x in found[split])
            assert images.shape == (20, 32, 64) and images.dtype == jnp.float32
            assert labels.shape == (20, 32) and labels.dtype == jnp.int32
            value = base + 5 if split == "test" else base
            np.testing.assert_allclose(images[..., 1:] * 255, value, atol=2e-3)
            numbers = np.rint(images[..., 0] * 255).astype(int)
            # 640 draws of at most 64 examples: all appear, and no others.
            assert set(numbers.ravel()) == set(range(low, high))
            np.testing.assert_array_equal(numbers % 10, labels)


def test_pixels_are_those_of_prepare():
    bank = sources.bank_of([prepare("digits")], flatten=True, fixed_point=True)
    stored = sources.decode(bank.splits["train"].inputs)
    expected = prepare("digits").train.inputs.reshape(-1, 64)
    np.testing.assert_allclose(stored, expected, atol=0.51 / 65535)
    assert float(stored.max()) == 1.0


def test_strata_fix_the_data_set_and_no_stratum_draws_it(family):
    assert family.num_strata == 2 and family.datasets == ("a", "b")
    fixed = family.sample(KEY, jnp.int32(1))
    assert int(fixed["dataset"]) == 1 and fixed["dataset"].dtype == jnp.int32
    drawn = jax.vmap(lambda k: family.sample(k)["dataset"])(jax.random.split(KEY, 64))
    assert 16 < int(jnp.sum(drawn)) < 48 and set(np.asarray(drawn)) == {0, 1}


def test_start_is_haikus(family):
    task = family.task({"dataset": 0})
    params, state = task.init(KEY)
    assert state is None
    assert {k: {n: x.shape for n, x in v.items()} for k, v in params.items()} == {
        "layer0": {"w": (64, 32), "b": (32,)},
        "layer1": {"w": (32, 10), "b": (10,)},
    }
    w = params["layer0"]["w"]
    # A standard normal truncated at +-2 has standard deviation 0.88.
    assert abs(float(jnp.std(w)) * 8 - 0.88) < 0.05 and abs(float(jnp.mean(w))) < 0.01
    assert float(jnp.abs(w).max()) <= 2 / 8 + 1e-6
    assert not np.any(params["layer0"]["b"])
    assert abs(float(jnp.std(params["layer1"]["w"])) * 32**0.5 - 0.88) < 0.15
    assert np.any(params["layer0"]["w"].ravel()[:320] != params["layer1"]["w"].ravel())


def test_loss_and_gradient_agree_with_optax(family):
    task = family.task({"dataset": 0})

    def reference(params):
        batch_key, _ = jax.random.split(KEY)
        x, y = task.batch(batch_key)
        hidden = jax.nn.relu(x @ params["layer0"]["w"] + params["layer0"]["b"])
        logits = hidden @ params["layer1"]["w"] + params["layer1"]["b"]
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return ce.mean(), (jnp.argmax(logits, 1) == y).mean()

    @jax.jit
    def both():
        params, _ = task.init(KEY)
        expected = jax.value_and_grad(reference, has_aux=True)(params)
        loss, grads, _ = task.value_and_grad(params, None, KEY)
        accuracy = task.metrics(params, None, KEY, "train")["accuracy"]
        evaluated = task.evaluate(params, None, KEY, "train")
        return expected, ((loss, accuracy), grads), evaluated

    expected, found, evaluated = both()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )
    np.testing.assert_allclose(evaluated, found[0][0], rtol=1e-5)


def test_meta_loss_is_bounded(family):
    task = family.task({"dataset": 0})
    bound = 1.5 * math.log(10)
    for loss, expected in (
        (0.3, 0.3),
        (50.0, bound),
        (math.inf, bound),
        (-math.inf, bound),
        (math.nan, bound),
    ):
        assert float(task.normalize(jnp.float32(loss))) == pytest.approx(expected)


def test_families_are_arguments_of_compiled_programs(family):
    traces = []

    @jax.jit
    def start(family, dataset):
        traces.append(None)
        return family.task({"dataset": dataset}).batch(KEY)[0].sum()

    first = start(family, jnp.int32(0))
    made = (constant_images("a", 20), constant_images("b", 100, n=80))
    other = tasks.supervised_family("mlp", made, batch_size=32)
    renamed = jax.tree.unflatten(jax.tree.structure(family), jax.tree.leaves(other))
    assert float(start(renamed, jnp.int32(0))) > float(first)
    assert len(traces) == 1
    assert all(np.size(c) < 100 for c in jax.make_jaxpr(start)(family, 0).consts)


def test_family_errors(family):
    few = constant_images("few", 10, classes=5)
    with pytest.raises(ConfigError, match="agree in classes"):
        tasks.supervised_family("mlp", (few, constant_images("a", 1)))
    with pytest.raises(ConfigError, match="at least one"):
        tasks.supervised_family("mlp", ())
    with pytest.raises(ConfigError, match="batch_size = 0"):
        tasks.supervised_family("mlp", ("digits",), batch_size=0)
    with pytest.raises(ConfigError, match="activation"):
        tasks.supervised_family("mlp", ("digits",), activation="rleu")
    with pytest.raises(ConfigError, match="hidden"):
        tasks.supervised_family("mlp", ("digits",), hidden=(0,))
    with pytest.raises(ConfigError, match=r"split = 'dev'.*'valid'"):
        family.task({"dataset": 0}).batch(KEY, "dev")
    small, large = prepare("digits", 4), prepare("digits", 8)
    with pytest.raises(ConfigError, match="one input shape"):
        sources.bank_of([small, large], fixed_point=True)


def test_indices_are_uniform():
    keys = jax.random.split(KEY, 500)
    drawn = jax.vmap(lambda k: sources.random_below(k, 64, jnp.uint32(10)))(keys)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=10)
    assert len(counts) == 10
    expected = 3200
    # Chi-squared with 9 degrees of freedom: 33.7 is exceeded once in 10^4.
    assert np.sum((counts - expected) ** 2 / expected) < 33.7
    assert not np.any(sources.random_below(KEY, 5, 1))


# Training works.


@pytest.mark.parametrize(
    ("name", "overrides", "fraction"),
    [
        ("digits_mlp_tanh", {"hidden": (32, 32)}, 0.5),
        ("digits_conv_batchnorm", {"channels": (8, 8), "strides": (2, 1)}, 0.6),
        ("digits_autoencoder", {"hidden": (32,)}, 0.5),
        ("breast_cancer_mlp", {}, 0.4),
        ("sklearn_descr_gru_lm", {"hidden": 32, "length": 8}, 0.8),
        ("sklearn_descr_transformer_lm", {"layers": 1, "length": 8}, 0.8),
    ],
)
def test_adam_reduces_the_validation_loss(name, overrides, fraction):
    task = tasks.task(name, batch_size=32, **overrides)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(task, key):
        params, state = task.init(key)

        def step(carry, key):
            params, state, opt_state = carry
            _, grads, state = task.value_and_grad(params, state, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), state, opt_state), None

        carry = (params, state, optimizer.init(params))
        after, _ = jax.lax.scan(step, carry, jax.random.split(key, 100))
        return tuple(task.evaluate(p, s, key, "valid") for p, s, _ in (carry, after))

    before, after = train(task, KEY)
    assert float(after) < fraction * float(before)


def test_quadratics_have_the_stated_curvature():
    task = tasks.task("quadratic_condition_100", dimension=7)
    assert isinstance(task, tasks.Quadratic)
    spectrum = np.asarray(task.eigenvalues)
    assert spectrum.max() / spectrum.min() == pytest.approx(100, rel=1e-4)
    assert spectrum.max() == pytest.approx(1)
    params, _ = task.init(KEY)
    loss, grads, _ = task.value_and_grad(params, None, KEY)
    np.testing.assert_allclose(grads["x"], spectrum * params["x"] / 7, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * np.mean(spectrum * params["x"] ** 2), 1e-5)

    noisy = tasks.Quadratic(dimension=7, noise=2.0)
    keys = jax.random.split(KEY, 2000)
    many = jax.vmap(lambda k: noisy.value_and_grad(params, None, k)[1]["x"])(keys)
    spread = np.asarray(many) * 7
    expected = np.asarray(noisy.eigenvalues * params["x"])
    np.testing.assert_allclose(spread.mean(0), expected, atol=0.2)
    np.testing.assert_allclose(spread.std(0), 2.0, rtol=0.1)
    clean = tasks.Quadratic(dimension=7)
    np.testing.assert_allclose(
        noisy.evaluate(params, None, KEY, "valid"),
        clean.evaluate(params, None, KEY, "valid"),
    )


# The table of names.


def test_listing():
    assert tasks.list_tasks("digits_conv*") == [
        "digits_conv",
        "digits_conv_batchnorm",
        "digits_conv_layernorm",
    ]
    embedded = tasks.list_tasks(only_available=True)
    assert {"digits_mlp_tanh", "wine_mlp", "sklearn_descr_gru_lm"} <= set(embedded)
    assert "cifar10_conv" in tasks.list_tasks()
    trained_on = [n for n in tasks.list_tasks() if not tasks.TASKS[n].held_out]
    assert trained_on and all(n.endswith(("_mlp_32", "catch_a2c")) for n in trained_on)


def test_overrides():
    task = tasks.task("digits_mlp_tanh", hidden=[5], batch_size=3, activation="relu")
    assert isinstance(task, tasks.SupervisedTask)
    assert task.network == tasks.MLP(hidden=(5,), outputs=10, activation="relu")
    assert task.batch(KEY)[0].shape == (3, 64)
    assert tasks.task_settings("digits_mlp_tanh")["hidden"] == (128, 128, 128)


def test_unknown_names_and_bad_values(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="digits_conv"):
        tasks.task("digits_cnov")
    with pytest.raises(UnknownName, match="batch_size"):
        tasks.task("digits_conv", batchsize=3)
    with pytest.raises(ConfigError, match="batch_size = 0"):
        tasks.task("digits_conv", batch_size=0)
    with pytest.raises(ConfigError, match="must be of type"):
        tasks.task("quadratic", dimension="ten")
    with pytest.raises(ConfigError, match="text data set"):
        tasks.task("sklearn_descr_gru_lm", dataset="digits")
    monkeypatch.setenv("LOPAX_DATA_DIR", str(tmp_path))
    assert not tasks.task_available("svhn_conv")
    with pytest.raises(DatasetNotFound, match="lopax data fetch svhn"):
        tasks.task("svhn_conv")


def test_a_single_task_is_a_family_and_an_argument():
    task = tasks.task("digits_mlp_32", batch_size=2)
    single = tasks.SingleTask(task)
    made = single.task(single.sample(KEY))
    assert made is task and single.num_strata == 1
    assert len(jax.tree.leaves(single)) == len(jax.tree.leaves(task))
