"""`lopax.optimizer` at home in optax: the battery optax runs over its own contrib
optimizers, sharding, guards, diagnostics. Every architecture, by random theta."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lopax
from lopax._core.errors import (
    ConfigError,
    MissingHorizon,
    MissingLoss,
    MissingParams,
    UnknownName,
)
from lopax.optax import from_rule

# Small nets compile quickly; what is tested does not depend on their size.
RULES = {
    "celo": {"lstm": 4, "start": "adam", "backend": "plain"},
    "celo_adam": {"lstm": 4},
}


def theta_of(name: str):
    return lopax.architecture(name, **RULES[name]).init_theta(jax.random.key(0))


def make(name: str, num_steps: int = 50, **options) -> Any:
    rule = lopax.architecture(name, **RULES[name])
    return from_rule(rule, theta_of(name), num_steps=num_steps, **options)


def params_tree(dtype=jnp.float32):
    k = jax.random.split(jax.random.key(1), 3)
    return {
        "dense": {
            "w": jax.random.normal(k[0], (6, 4), dtype),
            "b": jax.random.normal(k[1], (4,), dtype),
        },
        "gain": jnp.asarray(1.5, dtype),
    }


def loss_fn(params):
    return 0.5 * sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))


def fit(opt, params, steps: int = 50, with_value: bool = True):
    def body(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        extra = {"value": loss} if with_value else {}
        updates, state = opt.update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), loss

    run = jax.jit(lambda p: jax.lax.scan(body, (p, opt.init(p)), None, length=steps))
    (params, state), losses = run(params)
    return params, state, np.asarray(losses)


@pytest.mark.parametrize("name", RULES)
class TestBattery:
    def test_lowers_a_quadratic_inside_chain_jit_and_scan(self, name):
        opt: Any = optax.chain(
            optax.clip_by_global_norm(1.0), make(name, lr_multiplier=3.0)
        )
        _, _, losses = fit(opt, params_tree())
        assert losses[-1] < 0.9 * losses[0]

    def test_unknown_extra_arguments_are_ignored(self, name):
        opt, params = make(name), params_tree()
        state = opt.init(params)
        a, _ = opt.update(params, state, params, value=1.0)
        b, _ = opt.update(params, state, params, value=1.0, grad=3, unknown="x")
        assert jax.tree.all(jax.tree.map(jnp.array_equal, a, b))

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_dtypes_shapes_and_structure_are_stable(self, name, dtype):
        opt, params = make(name, weight_decay=0.1), params_tree(dtype)
        state = opt.init(params)
        updates, after = opt.update(params, state, params, value=1.0)
        assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
            lambda x: x.dtype, params
        )
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, after)]
        assert shapes[0] == shapes[1]
        applied: Any = optax.apply_updates(params, updates)
        assert applied["gain"].dtype == dtype

    def test_inject_hyperparams(self, name):
        rule, theta = lopax.architecture(name, **RULES[name]), theta_of(name)

        @optax.inject_hyperparams
        def build(lr_multiplier):
            return from_rule(rule, theta, num_steps=10, lr_multiplier=lr_multiplier)

        params, plain = params_tree(), make(name, 10, lr_multiplier=0.5)
        opt: Any = build(lr_multiplier=0.5)
        a, state = opt.update(params, opt.init(params), params, value=1.0)
        b, _ = plain.update(params, plain.init(params), params, value=1.0)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
        assert float(state.hyperparams["lr_multiplier"]) == 0.5

    def test_schedules_and_weight_decay(self, name):
        params = params_tree()
        halving = make(name, lr_multiplier=lambda step: 0.5**step)
        plain = make(name)
        s1, s2 = halving.init(params), plain.init(params)
        for step in range(3):
            a, s1 = halving.update(params, s1, params, value=1.0)
            b, s2 = plain.update(params, s2, params, value=1.0)
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                np.testing.assert_allclose(x, 0.5**step * y, rtol=1e-5)

    def test_weight_decay_is_decoupled_masked_and_follows_the_schedule(self, name):
        params = params_tree()
        mask = {"dense": {"w": True, "b": False}, "gain": False}
        plain, decayed = make(name), make(name, weight_decay=0.1, mask=mask)
        rule = lopax.architecture(name, **RULES[name])
        theta = theta_of(name)
        _, _, info = rule.update(
            theta, params, rule.init(theta, params, 50), params, value=1.0
        )
        a, _ = plain.update(params, plain.init(params), params, value=1.0)
        b, _ = decayed.update(params, decayed.init(params), params, value=1.0)
        expected = a["dense"]["w"] - 0.1 * info.step_scale * params["dense"]["w"]
        np.testing.assert_allclose(b["dense"]["w"], expected, rtol=1e-5)
        np.testing.assert_array_equal(b["dense"]["b"], a["dense"]["b"])

    def test_multi_steps(self, name):
        params = params_tree()
        every_two: Any = optax.MultiSteps(make(name), every_k_schedule=2)
        state = every_two.init(params)
        first, state = every_two.update(params, state, params, value=1.0)
        second, state = every_two.update(params, state, params, value=1.0)
        assert not np.any(first["dense"]["w"])
        assert np.any(second["dense"]["w"])

    def test_the_state_may_be_donated(self, name):
        """No array of the state is used twice in it, or is one of theta's."""
        theta, params = theta_of(name), params_tree()
        opt: Any = from_rule(
            lopax.architecture(name, **RULES[name]), theta, num_steps=9
        )

        def step(state, params):
            return opt.update(params, state, params, value=1.0)

        run, state = jax.jit(step, donate_argnums=0), opt.init(params)
        for _ in range(2):
            _, state = run(state, params)
        assert np.all(np.isfinite(theta["scheduler"]["initial"]["hidden"]))

    def test_masked_and_multi_transform(self, name):
        params = params_tree()
        labels = {"dense": {"w": "learned", "b": "adam"}, "gain": "adam"}
        opt: Any = optax.multi_transform(
            {"learned": make(name), "adam": optax.adam(1e-3)}, labels
        )
        updates, _ = opt.update(params, opt.init(params), params, value=1.0)
        assert np.any(updates["dense"]["w"])
        np.testing.assert_allclose(updates["gain"], -1e-3, rtol=1e-4)

    def test_a_bad_step_is_skipped_and_training_recovers(self, name):
        opt, params = make(name), params_tree()
        state = opt.init(params)
        _, state = opt.update(params, state, params, value=1.0)
        broken = jax.tree.map(lambda x: x.at[..., :1].set(jnp.nan) if x.ndim else x,
                              params)  # fmt: skip
        for grads, value in ((broken, 1.0), (params, jnp.nan), (params, jnp.inf)):
            updates, after = opt.update(grads, state, params, value=value)
            assert not any(np.any(u) for u in jax.tree.leaves(updates))
            same = jax.tree.map(np.array_equal, after.rule.tensors, state.rule.tensors)
            assert jax.tree.all(same)
            assert jax.tree.all(
                jax.tree.map(np.array_equal, after.rule.shared, state.rule.shared)
            )
            assert int(after.rule.skipped) == 1
        updates, _ = opt.update(params, after, params, value=0.9)
        assert np.all(np.isfinite(updates["dense"]["w"]))
        assert np.any(updates["dense"]["w"])

    def test_sharded_parameters_give_the_same_updates(self, name):
        """Tensors split along either axis over eight devices; the state is split like
        its parameter, and no parameter-sized array is gathered."""
        mesh = Mesh(np.asarray(jax.devices()[:8]), ("d",))
        params = {
            "rows": jax.random.normal(jax.random.key(0), (16, 24)),
            "cols": jax.random.normal(jax.random.key(1), (24, 16)),
            "vec": jax.random.normal(jax.random.key(2), (32,)),
        }
        specs = {"rows": P("d", None), "cols": P(None, "d"), "vec": P("d")}
        sharded = {
            k: jax.device_put(v, NamedSharding(mesh, specs[k]))
            for k, v in params.items()
        }
        opt = make(name)

        def step(params, state):
            return opt.update(params, state, params, value=1.0)

        init, run = jax.jit(opt.init), jax.jit(step)
        plain, _ = run(params, init(params))
        state = init(sharded)
        updates, after = run(sharded, state)
        for k in params:
            np.testing.assert_allclose(updates[k], plain[k], rtol=2e-5, atol=1e-9)
            assert updates[k].sharding.is_equivalent_to(
                sharded[k].sharding, params[k].ndim
            )
        text = str(run.lower(sharded, after).compile().as_text())
        for line in text.splitlines():
            if "all-gather(" in line or "all-gather-start(" in line:
                assert "[16,24]" not in line.split("=")[1][:40], line
                assert "[24,16]" not in line.split("=")[1][:40], line


def test_missing_arguments_show_the_call_to_change():
    opt, params = make("celo"), params_tree()
    state = opt.init(params)
    with pytest.raises(MissingLoss, match=r"value=loss"):
        opt.update(params, state, params)
    with pytest.raises(MissingParams, match=r"opt.update\(grads, state, params"):
        opt.update(params, state, value=1.0)
    with pytest.raises(MissingHorizon, match="num_steps=2_000"):
        lopax.optimizer("celo", theta=theta_of("celo"), **RULES["celo"])


def test_bad_arguments_are_refused_by_name():
    theta = theta_of("celo")
    with pytest.raises(UnknownName, match="did you mean 'celo'"):
        lopax.optimizer("celoo", num_steps=10)
    with pytest.raises(ConfigError, match="num_steps = 0"):
        lopax.optimizer("celo", num_steps=0, theta=theta, **RULES["celo"])
    with pytest.raises(ConfigError, match="weight_decay = -1"):
        lopax.optimizer(
            "celo", num_steps=5, theta=theta, weight_decay=-1.0, **RULES["celo"]
        )
    with pytest.raises(ConfigError, match="not both"):
        lopax.optimizer("celo", num_steps=5, theta=theta, weights="celo")


def test_info_tells_what_a_step_did():
    rule, theta = lopax.architecture("celo", **RULES["celo"]), theta_of("celo")
    params = params_tree()
    grads = jax.tree.map(lambda x: 5e3 * jnp.ones_like(x), params)
    state = rule.init(theta, params, 10)
    updates, _, info = rule.update(theta, grads, state, params, value=1.0)
    assert int(info.clipped) == 24 + 4 + 1
    assert not bool(info.skipped)
    rms = float(jnp.sqrt(jnp.mean(updates["dense"]["w"] ** 2)))
    np.testing.assert_allclose(info.update_rms["dense"]["w"], rms, rtol=1e-5)
    assert 0 < float(info.step_scale) < 1


def test_weights_and_theta_in_memory_are_the_same_optimizer(tmp_path):
    theta, params = theta_of("celo_adam"), params_tree()
    rule = lopax.architecture("celo_adam", **RULES["celo_adam"])
    lopax.save_theta(tmp_path / "w.safetensors", theta, rule)
    a: Any = lopax.optimizer(
        "celo_adam", num_steps=9, weights=tmp_path / "w.safetensors"
    )
    b: Any = lopax.optimizer("celo_adam", num_steps=9, theta=theta, lstm=4)
    x, _ = a.update(params, a.init(params), params, value=1.0)
    y, _ = b.update(params, b.init(params), params, value=1.0)
    assert jax.tree.all(jax.tree.map(np.array_equal, x, y))


@pytest.mark.parametrize("name", lopax.list_weights())
def test_bundled_weights_train_without_tuning(name):
    """What a practitioner does: three lines, and the loss goes down to near zero."""
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(data.target, jnp.float32)

    def logistic(params):
        h = jnp.tanh(x @ params["w1"] + params["b1"])
        z = h @ params["w2"]
        return jnp.mean(jax.nn.softplus(z) - y * z)

    k1, k2 = jax.random.split(jax.random.key(0))
    params = {
        "w1": jax.random.normal(k1, (30, 16)) / 30**0.5,
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(k2, (16,)) / 4,
    }
    opt: Any = lopax.optimizer(name, num_steps=200)

    def body(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(logistic)(params)
        updates, state = opt.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    run = jax.jit(lambda p: jax.lax.scan(body, (p, opt.init(p)), None, length=200)[1])
    losses = run(params)
    assert float(losses[-1]) < 0.1 * float(losses[0])
