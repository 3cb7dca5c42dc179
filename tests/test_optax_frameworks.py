"""The optimizer in other people's training code: files, orbax, Flax NNX, Equinox."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_rules import assert_same, make, params_tree
from quick_compile import quick_compilation  # noqa: F401

import lopax
from lopax._core.errors import ConfigError
from lopax.architectures import ARCHITECTURES, architecture
from lopax.optax import from_rule
from lopax.pretrained import read_arrays
from lopax.theta import load_optimizer

WEIGHTS = Path(lopax.__file__).parent / "pretrained" / "weights"
X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 4)), jnp.float32)
Y = X @ jnp.asarray([1.0, -2.0, 0.5, 3.0])


def some_steps(opt: Any, state: Any, steps: int) -> Any:
    params = params_tree()
    update = jax.jit(opt.update)
    updates: Any = None
    for t in range(steps):
        updates, state = update(params, state, params, value=1.0 / (t + 1))
    return updates, state


def chain() -> Any:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        make("celo", 40, accumulate_beyond=20, momentum_dtype="bfloat16", report=True),
    )


def test_a_saved_state_continues_to_the_bit(tmp_path):
    opt = chain()
    _, state = some_steps(opt, opt.init(params_tree()), 3)
    lopax.save_state(tmp_path / "s.safetensors", state)
    like = jax.eval_shape(opt.init, params_tree())
    again = lopax.load_state(tmp_path / "s.safetensors", like=like)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert_same(again, state, 0, 0)
    assert_same(some_steps(opt, again, 3), some_steps(opt, state, 3), 0, 0)


def switched(name: str) -> Iterator[Any]:
    """The architecture as it is, as it is bundled, and with each of its switches in
    the other position."""
    yield architecture(name)
    if name in lopax.list_weights():
        yield load_optimizer(read_arrays(WEIGHTS / f"{name}.safetensors"), None, {})[0]
    for field in dataclasses.fields(ARCHITECTURES[name].config):
        if isinstance(field.default, bool):
            with contextlib.suppress(ConfigError):  # two that exclude each other
                yield architecture(name, **{field.name: not field.default})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_array_of_a_state_is_empty(name):
    """Orbax refuses to save arrays without elements."""
    for rule in switched(name):
        theta = rule.init_theta(jax.random.key(0))
        for params in (params_tree(), {"b": jnp.zeros(3)}):
            state = jax.eval_shape(from_rule(rule, theta, num_steps=9).init, params)
            assert all(x.size for x in jax.tree.leaves(state)), rule.config


@pytest.mark.parametrize("name", [None, "learned_muon"])
def test_orbax(tmp_path, name):
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    opt = chain() if name is None else lopax.optimizer(name, num_steps=40)
    _, state = some_steps(opt, opt.init(params_tree()), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(opt.init, params_tree())
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
        )
        again = checkpointer.restore(tmp_path / "state", like)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert_same(again, state, 0, 0)
    assert_same(some_steps(opt, again, 1), some_steps(opt, state, 1), 0, 0)


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, lopax.optimizer("celo", num_steps=60), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer):
        def loss_fn(model):
            return jnp.mean(jnp.square(model(X)[:, 0] - Y))

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads, value=loss)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert lopax.info(optimizer.opt_state)["step"] == 20
    optimizer.opt_state = lopax.extend(optimizer.opt_state, 100)
    step(model, optimizer)
    found = lopax.info(optimizer.opt_state)
    assert (found["step"], found["num_steps"]) == (21, 100)


def test_flax_train_state():
    train_state = pytest.importorskip("flax.training.train_state", reason="no flax")
    params = {"w": jnp.ones((4,))}
    opt = lopax.optimizer("celo", num_steps=60)
    state = train_state.TrainState.create(
        apply_fn=lambda p, x: x @ p["w"], params=params, tx=opt
    )

    @jax.jit
    def step(state):
        def loss_fn(params):
            return jnp.mean(jnp.square(state.apply_fn(params, X) - Y))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = state.tx.update(
            grads, state.opt_state, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        moved = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
        return moved, loss

    losses = []
    for _ in range(20):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert lopax.info(state)["step"] == 20
    assert lopax.info(lopax.extend(state, 100))["num_steps"] == 100


def test_equinox():
    eqx: Any = pytest.importorskip("equinox", reason="equinox is not installed")
    model = eqx.nn.Linear(4, 1, key=jax.random.key(0))
    opt = lopax.optimizer("celo", num_steps=60)
    state = opt.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        def loss_fn(model):
            return jnp.mean(jnp.square(jax.vmap(model)(X)[:, 0] - Y))

        loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = opt.update(grads, state, params, value=loss)
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(20):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert lopax.info(state)["step"] == 20
