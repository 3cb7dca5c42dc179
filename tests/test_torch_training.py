"""One network trains the same in JAX and in torch: real runs, loss by loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from shared_files import shared
from torch_common import NAMES, SETTINGS, adam_like_theta, to_torch_layout

import lopax.torch as lt

STEPS = 200
LARGER: dict[str, dict[str, Any]] = {
    "celo": {"trained_horizon": 100},
    "celo2": {"step_mult": 2e-3},
}
"""Much of the way is lost to a schedule that falls, or in runs longer than trained."""


def digits() -> tuple[np.ndarray, np.ndarray]:
    """256 real digits [256, 8, 8] and their labels.

    One large batch: with small ones the run is chaotic and rounding errors grow.
    """
    data: Any = pytest.importorskip("sklearn.datasets").load_digits()
    return (data.images[:256] / 16.0).astype(np.float32), data.target[:256]


def jax_losses(rule: Any, theta: Any, params: Any, predict: Any) -> list[float]:
    """Losses of a run; `predict(params)` gives the logits of the digits."""
    import jax
    import jax.numpy as jnp
    from quick_compile import quick_jit

    _, labels = digits()
    # Smoothed labels: else the loss falls to where it is all rounding errors.
    targets = 0.9 * np.eye(10, dtype=np.float32)[labels] + 0.01

    def loss_fn(params: Any) -> Any:
        log_p = jax.nn.log_softmax(predict(params))
        return -jnp.mean(jnp.sum(log_p * targets, 1))

    def one(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state, _ = rule.update(theta, grads, state, params, value=loss)
        return jax.tree.map(jnp.add, params, updates), state, loss

    step = quick_jit(one)
    state, losses = rule.init(theta, params, STEPS), []
    for _ in range(STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses


def torch_losses(net: torch.nn.Module, optimizer: Any) -> list[float]:
    images, labels = (torch.tensor(x) for x in digits())
    losses = []
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(
            net(images[:, None]), labels, label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    return losses


CHAOTIC = {"plain_mlp", "rnn_mlp", "learned_adam", "scheduled_adam"} | {
    *("linear_optim", "l2lgd2", "l2o_lstm", "l2o_gru")
}
"""Rules that do not train with random meta-parameters, or do not settle, so that
rounding errors grow; `test_torch_rules` compares theirs a few steps at a time."""


@pytest.mark.parametrize("name", sorted({*NAMES} - CHAOTIC))
def test_a_small_mlp_trains_the_same(name: str) -> None:
    jax = pytest.importorskip("jax")
    from lopax.architectures import architecture

    images, _ = digits()
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 10),
    )
    params = [jax.numpy.asarray(p.detach().numpy().T) for p in net.parameters()]

    def predict(p: Any) -> Any:
        return jax.numpy.tanh(images.reshape(-1, 64) @ p[0] + p[1]) @ p[2] + p[3]

    arrays = adam_like_theta(name)
    settings = SETTINGS.get(name, {}) | LARGER.get(name, {})
    rule: Any = architecture(name, **settings)
    expected = jax_losses(rule, rule.theta_from_arrays(arrays), params, predict)
    optimizer = lt.optimizer(
        name, net.parameters(), num_steps=STEPS, theta=arrays, **settings
    )
    found = torch_losses(net, optimizer)
    assert found[-1] < 0.6 * found[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_a_convolutional_network_trains_the_same(name: str) -> None:
    """With published weights, and each framework's own layout of convolutions."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    from lopax.architectures import architecture
    from lopax.pretrained import read_weights

    arrays = read_weights(shared("weights", name, "theta.state")).arrays
    images, _ = digits()
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, stride=2, padding=1),
        torch.nn.Tanh(),
        torch.nn.Conv2d(6, 6, 3, stride=2, padding=1),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 10),
    )
    params = [
        jnp.asarray(np.moveaxis(p, (0, 1), (-1, -2)) if p.ndim > 1 else p)
        for p in (p.detach().numpy() for p in net.parameters())
    ]
    first = next(net.parameters()).detach()
    np.testing.assert_array_equal(to_torch_layout(params[0]), first)

    def conv(x: Any, w: Any, b: Any) -> Any:
        axes, pad = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
        out = jax.lax.conv_general_dilated(x, w, (2, 2), pad, None, None, axes)
        return jnp.tanh(out + b)

    def predict(w: Any) -> Any:
        x = conv(conv(images[..., None], w[0], w[1]), w[2], w[3])
        x = x.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return jnp.tanh(x @ w[4] + w[5]) @ w[6] + w[7]

    rule: Any = architecture(name)
    expected = jax_losses(rule, rule.theta_from_arrays(arrays), params, predict)
    optimizer = lt.optimizer(name, net.parameters(), num_steps=STEPS, theta=arrays)
    found = torch_losses(net, optimizer)
    assert found[-1] < 0.5 * found[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("cls", [lt.Celo, lt.CeloAdam])
@pytest.mark.parametrize("num_steps", [10**7, 10**8, 10**9])
def test_horizons_whose_decays_round_to_one(cls, num_steps):
    param = torch.nn.Parameter(torch.ones(5, 4))
    optimizer = cls([param], num_steps=num_steps)
    for _ in range(6):
        param.grad = torch.ones(5, 4)
        optimizer.step(loss=1.0)
    assert torch.isfinite(param).all() and not torch.equal(param, torch.ones(5, 4))
