"""Task networks and what they are fed: convolutions, norms, language models, text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_compilation  # noqa: F401

from lopax import tasks
from lopax._core.errors import ConfigError
from lopax.data import TextDataset, load
from lopax.tasks import conv, networks, sources, text_networks

KEY = jax.random.key(0)


def test_batch_norm_keeps_running_statistics():
    net = conv.ConvNet(channels=(4,), strides=(2,), outputs=3, norm="batch")
    params, state = net.init(KEY, (6, 6, 2))
    x = 3.0 + 2.0 * jax.random.normal(KEY, (16, 6, 6, 2))
    out, after = net.apply(params, state, x)
    assert out.shape == (16, 3)

    raw = jax.lax.conv_general_dilated(
        x,
        params["conv0"]["w"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    raw = np.maximum(raw, 0).reshape(-1, 4)
    np.testing.assert_allclose(after["conv0"]["mean"], 0.1 * raw.mean(0), rtol=1e-4)
    expected = 0.9 + 0.1 * raw.var(0)
    np.testing.assert_allclose(after["conv0"]["variance"], expected, rtol=1e-4)

    # In training the output does not see the running statistics, in evaluation it
    # sees nothing else.
    other = jax.tree.map(lambda s: s + 5.0, state)
    np.testing.assert_allclose(net.apply(params, other, x)[0], out, rtol=1e-6)
    _, same = net.apply(params, other, x, training=False)
    jax.tree.map(np.testing.assert_array_equal, same, other)
    alone = net.apply(params, after, x[:1], training=False)[0]
    batch = net.apply(params, after, x, training=False)[0]
    np.testing.assert_allclose(alone, batch[:1], rtol=1e-4, atol=1e-6)

    published = conv.ConvNet(
        channels=(4,), strides=(2,), outputs=3, norm="batch", always_training=True
    )
    evaluated, kept = published.apply(params, other, x, training=False)
    np.testing.assert_allclose(evaluated, out, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, other)


def test_batch_norm_task_carries_and_uses_its_state():
    task = tasks.task(
        "digits_conv_batchnorm", batch_size=16, channels=(4,), strides=(2,)
    )

    @jax.jit
    def run(task):
        params, start = task.init(KEY)
        _, _, after = task.value_and_grad(params, start, KEY)
        losses = [task.evaluate(params, s, KEY, "valid") for s in (start, after)]
        return after, losses

    after, (by_start, by_after) = run(task)
    assert np.all(after["conv0"]["mean"] > 0)  # of ReLU outputs
    assert abs(float(by_after) - float(by_start)) > 1e-4


def test_norms_normalise():
    x = 3.0 + 2.0 * jax.random.normal(KEY, (5, 32))
    normal = networks.layer_norm(networks.norm_params(32), x)
    np.testing.assert_allclose(jnp.mean(normal, 1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(normal, 1), 1, atol=1e-4)
    net = tasks.MLP(hidden=(7,), outputs=2, layer_norm=True)
    params, _ = net.init(KEY, (3,))
    assert set(params["layer0"]) == {"w", "b", "scale", "offset"}
    assert set(params["layer1"]) == {"w", "b"}


def test_autoencoder_reproduces_its_input():
    task = tasks.task("digits_autoencoder", hidden=(5,), batch_size=4)
    params, _ = task.init(KEY)
    x, y = task.batch(KEY)
    loss, _ = task.loss(params, None, KEY, (x, y))
    hidden = jax.nn.relu(x @ params["layer0"]["w"] + params["layer0"]["b"])
    out = jax.nn.sigmoid(hidden @ params["layer1"]["w"] + params["layer1"]["b"])
    np.testing.assert_allclose(loss, jnp.mean((out - x) ** 2), rtol=1e-5)
    assert task.loss_bound == 1.0


LANGUAGE_MODELS = {
    "gru": tasks.RecurrentLM(vocabulary=11, cell="gru", embedding=6, hidden=8),
    "lstm": tasks.RecurrentLM(vocabulary=11, cell="lstm", embedding=6, hidden=8),
    "transformer": tasks.TransformerLM(vocabulary=11, width=8, heads=2, layers=2),
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_see_the_past_only(name):
    net = LANGUAGE_MODELS[name]
    params, _ = net.init(KEY, (9,))
    x = jax.random.randint(KEY, (3, 9), 0, 11)
    changed = x.at[:, 4].set((x[:, 4] + 1) % 11)
    apply = jax.jit(lambda x: net.apply(params, None, x)[0])
    a, b = np.asarray(apply(x)), np.asarray(apply(changed))
    assert a.shape == (3, 9, 11)
    np.testing.assert_allclose(a[:, :4], b[:, :4], atol=1e-6)
    difference = np.abs(a - b).max(axis=-1)
    assert np.all(difference[:, 4] > 1e-4) and np.all(difference[:, 8] > 1e-7)


def test_gru_by_hand():
    net = LANGUAGE_MODELS["gru"]
    assert isinstance(net, tasks.RecurrentLM)
    params, _ = net.init(KEY, (3,))
    params = jax.tree.map(lambda p: p + 0.1, params)
    x = jnp.array([[1, 4, 9]])
    logits, _ = net.apply(params, None, x)
    p = jax.tree.map(np.asarray, params)
    h = np.zeros(8)
    for t, symbol in enumerate((1, 4, 9)):
        e = p["embedding"][symbol]
        joined = np.concatenate([e, h]) @ p["gates"]["w"] + p["gates"]["b"]
        update, reset = np.split(1 / (1 + np.exp(-joined)), 2)
        mixed = np.concatenate([e, reset * h]) @ p["candidate"]["w"]
        h = (1 - update) * h + update * np.tanh(mixed + p["candidate"]["b"])
        expected = h @ p["head"]["w"] + p["head"]["b"]
        np.testing.assert_allclose(logits[0, t], expected, rtol=1e-4, atol=1e-5)


def test_embedding_is_a_lookup():
    table = text_networks.embedding_init(KEY, 5, 3)
    symbols = jnp.array([[0, 4], [2, 2]])
    np.testing.assert_allclose(text_networks.embed(table, symbols), table[symbols])


def test_text_windows():
    text = load("sklearn_descr")
    assert isinstance(text, TextDataset)
    bank = sources.text_bank(text, length=12)
    inputs, targets = bank.draw(KEY, "train", 40)
    assert inputs.shape == targets.shape == (40, 12) and inputs.dtype == jnp.int32
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    letters = np.unique(text.train)
    assert bank.vocabulary == len(letters) + 1
    corpus = text.train.tobytes()
    for row, last in zip(np.asarray(inputs), np.asarray(targets)[:, -1], strict=True):
        window = letters[np.append(row, last) - 1].tobytes()
        assert window in corpus
    assert len(np.unique(inputs, axis=0)) > 30


def test_symbols_the_training_text_lacks_are_unknown():
    made = [np.frombuffer(x, np.uint8) for x in (b"abcabc", b"abzc", b"zzzz")]
    text = TextDataset(name="made", train=made[0], valid=made[1], test=made[2])
    bank = sources.text_bank(text, length=3)
    assert bank.vocabulary == 4
    np.testing.assert_array_equal(bank.splits["train"], [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(bank.splits["valid"], [1, 2, 0, 3])
    inputs, targets = bank.draw(KEY, "valid", 3)  # the only window there is
    np.testing.assert_array_equal(inputs, [[1, 2, 0]] * 3)
    np.testing.assert_array_equal(targets, [[2, 0, 3]] * 3)
    for length in (0, 4):
        with pytest.raises(ConfigError, match=f"length = {length}"):
            sources.text_bank(text, length)


def test_network_settings_are_checked():
    for make, says in (
        (lambda: conv.ConvNet(channels=(4, 4), strides=(1,), outputs=2), "one entry"),
        (lambda: conv.ConvNet(channels=(4,), strides=(0,), outputs=2), "strides"),
        (
            lambda: conv.ConvNet(channels=(4,), strides=(1,), outputs=2, norm="bn"),
            "norm",
        ),
        (lambda: tasks.TransformerLM(vocabulary=5, width=30, heads=4), "multiple"),
        (lambda: tasks.RecurrentLM(vocabulary=5, cell="rnn"), "'gru', 'lstm'"),
        (lambda: tasks.Quadratic(condition=0.5), "condition = 0.5"),
        (lambda: tasks.Quadratic(noise=-1.0), "noise"),
    ):
        with pytest.raises(ConfigError, match=says):
            make()
