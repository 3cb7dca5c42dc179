"""Every architecture, small and with meta-parameters that descend, for the tests of
the optax form.

A random theta moves somewhere; whether training works can only be tested with one that
descends. Where an architecture has no such start of its own, it is set by hand here:
the network passes on one channel (a momentum or the gradient) and nothing else.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compile import quick_jit

import lopax
from lopax._core.types import Theta
from lopax.architectures import ARCHITECTURES
from lopax.nets import dense_mlp
from lopax.optax import from_rule

SETTINGS: dict[str, dict[str, Any]] = {
    "celo": {"lstm": 18, "start": "adam"},
    "celo_adam": {"lstm": 18, "start": "falling", "step_mult": 2e-2},
    "celo2": {"step_mult": 0.02, "adam_mult": 1.0},
    "celo2_base": {"step_mult": 0.02},
    "velo": {"lstm": 4, "bank": 2, "bank_mult": 1.0},
    "adafac_mlp": {},
    "mulo": {"hidden": 8},
    "plain_mlp": {"hidden": 8},
    "star": {"nominal": 2e-2},
    "rnn_mlp": {"lstm": 4, "hidden": 4},
    "nn_adam": {"lstm": 4, "learning_rate": 2e-2},
    "l2o_lstm": {"lstm": 2},
    "l2o_gru": {"units": 2, "step_mult": 0.1},
    "optim4rl": {"units": 2, "lr": 2e-2},
    "linear_optim": {"units": 2, "lr": 2e-2},
    "l2lgd2": {"units": 2, "lr": 2e-2},
    "l3rs": {"hidden": 8, "learning_rate": 2e-2},
    "learned_muon": {},
    "learned_sgd": {},
    "learned_adam": {"learning_rate": 2e-2},
    "scheduled_adam": {"learning_rate": 2e-2, "knots": 3},
}
NAMES = sorted(SETTINGS)
assert set(NAMES) == set(ARCHITECTURES), "an architecture is not in the table"

FIRST_ADAM = {"celo2": 9, "celo2_base": 9, "velo": 9, "adafac_mlp": 6, "mulo": 6}
"""Place of the channel `first momentum over root second moment`, or the like."""


@functools.cache
def rule_of(name: str) -> Any:
    return lopax.architecture(name, **SETTINGS[name])


@functools.cache
def theta_of(name: str) -> Theta:
    """Meta-parameters with which the rule lowers a loss."""
    theta = jax.jit(rule_of(name).init_theta)(jax.random.key(0))
    if name in ("celo2", "celo2_base"):
        return {"rule": _passing_on(theta["rule"], FIRST_ADAM[name], 1.0)}
    if name in ("adafac_mlp", "mulo"):
        gain = 20.0 if name == "adafac_mlp" else 2.0
        return {**theta, "net": _passing_on(theta["net"], FIRST_ADAM[name], gain)}
    if name == "l3rs":  # not zero, so that it follows time and loss
        output = {**theta["output"], "w": theta["output"]["w"] + 0.05}
        return {**theta, "output": output}
    if name == "plain_mlp":  # the momentum of decay 0.9
        return {"net": _passing_on(theta["net"], 4, 20.0)}
    if name == "rnn_mlp":
        return {**theta, "net": _passing_on(theta["net"], 0, 20.0)}
    if name == "scheduled_adam":
        return {**theta, "log_schedule": jnp.linspace(0.0, -1.0, 3)}
    if name == "velo":
        bank = _passing_on(theta["bank"], FIRST_ADAM[name], 20.0)
        controls = {k: jnp.zeros_like(x) for k, x in theta["controls"].items()}
        controls["b"] += 1.0
        # A multiplier of about one that still listens to the LSTM.
        head = {**theta["head"], "b": jnp.ones(1)}
        return {**theta, "bank": bank, "controls": controls, "head": head}
    if name == "l2o_gru":  # half the hidden units, half tanh(gradient)
        zero = jax.tree.map(jnp.zeros_like, theta)
        units = SETTINGS[name]["units"]
        wx = zero["gru"]["wx"].at[0, 2 * units :].set(1.0)
        head = {**zero["head"], "w": zero["head"]["w"] - 0.5}
        return {**zero, "gru": {**zero["gru"], "wx": wx}, "head": head}
    if name in ("linear_optim", "l2lgd2"):  # gradient descent
        return {**theta, "head": jax.tree.map(jnp.zeros_like, theta["head"])}
    if name == "l2o_lstm":
        # Cell input = sign of the gradient (layer 0), then the layer below (layer 1).
        zero = jax.tree.map(jnp.zeros_like, theta)
        units = SETTINGS[name]["lstm"]
        for layer, channel in (("lstm0", 1), ("lstm1", 0)):
            w = zero[layer]["w"].at[channel, units : 2 * units].set(1.0)
            zero[layer] = {**zero[layer], "w": w}
        head = {**zero["head"], "w": zero["head"]["w"] - 0.5}
        return {**zero, "head": head}
    return theta


def _passing_on(net: Theta, channel: int, gain: float) -> Theta:
    """An MLP (or bank of them) whose first output is gain x channel, others zero."""
    zero = jax.tree.map(jnp.zeros_like, net)
    w0 = zero["w0"].at[..., channel, 0].set(1.0).at[..., channel, 1].set(-1.0)
    w1 = zero["w1"].at[..., 0, 0].set(1.0).at[..., 1, 1].set(1.0)
    w2 = zero["w2"].at[..., 0, 0].set(gain).at[..., 1, 0].set(-gain)
    return {**zero, "w0": w0, "w1": w1, "w2": w2}


@pytest.fixture(autouse=True)
def compact_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported by a test module, it makes networks there matrix products: the same
    result, a quarter of the compile time. Golden files test the unrolled form."""
    monkeypatch.setattr(dense_mlp, "UNROLLED_UP_TO", 0)


def make(name: str, num_steps: Any = 50, **options: Any) -> Any:
    """The optax form."""
    return from_rule(rule_of(name), theta_of(name), num_steps=num_steps, **options)


def params_tree(dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "dense": {
            "w": jnp.asarray(rng.normal(size=(6, 4)), dtype),
            "b": jnp.asarray(rng.normal(size=(4,)), dtype),
        }
    }


def loss_fn(params: Any) -> Any:
    squares = [jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params)]
    return 0.5 * sum(squares, jnp.zeros(()))


def fit(opt: Any, params: Any, steps: int = 50, poison: tuple[int, ...] = ()) -> Any:
    """(params, state, losses [steps]) of gradient descent on `loss_fn` in one program.

    In the steps listed in `poison`, gradients (odd ones) or the loss are NaN.
    """
    bad = jnp.zeros((steps,)).at[jnp.asarray(poison, jnp.int32)].set(jnp.nan)
    odd = jnp.arange(steps) % 2 == 1

    def body(carry: Any, given: Any) -> Any:
        params, state = carry
        nan, spoil_grads = given
        loss, grads = jax.value_and_grad(loss_fn)(params)
        grads = jax.tree.map(lambda g: g + jnp.where(spoil_grads, nan, 0.0), grads)
        value = loss + jnp.where(spoil_grads, 0.0, nan)
        updates, state = opt.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), loss

    def run(params: Any) -> Any:
        return jax.lax.scan(body, (params, opt.init(params)), (bad, odd))

    (params, state), losses = quick_jit(run)(params)
    return params, state, np.asarray(losses)


def assert_same(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
