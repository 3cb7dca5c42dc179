"""What people have in their trees, flags and programs, for every architecture: each
thing is either right or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optax_rules import (
    NAMES,
    SETTINGS,
    assert_same,
    compact_programs,  # noqa: F401
    make,
    params_tree,
    theta_of,
)
from quick_compile import quick_compilation, quick_jit  # noqa: F401
from toy import ParabolaFamily

import lopax
from lopax._core import tree as trees
from lopax._core.errors import ConfigError, StructureMismatch
from lopax.estimators import (
    PES,
    FullES,
    Horizon,
    ParticleSettings,
    TruncatedBackprop,
    Unroller,
)
from lopax.optax import from_rule

CHEAP = "learned_adam"


@contextlib.contextmanager
def sixty_four_bits() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def step(opt: Any, params: Any, grads: Any, value: Any = 1.0) -> Any:
    return opt.update(grads, opt.init(params), params, value=value)


def kinds(tree: Any) -> Any:
    return {k: (x.shape, str(x.dtype)) for k, x in trees.named_leaves(tree).items()}


@pytest.mark.parametrize("name", NAMES)
class TestEveryArchitecture:
    def test_a_gradient_of_another_shape_is_refused_by_name(self, name):
        params = {"a": jnp.ones((4, 3)), "b": jnp.ones(3)}
        for wrong in (jnp.ones((3, 4)), jnp.ones(12), jnp.ones(()), None):
            with pytest.raises(StructureMismatch) as error:
                step(make(name), params, params | {"a": wrong})
            text = str(error.value)
            assert "a: expected float32[4,3]" in text and "b:" not in text
        with pytest.raises(StructureMismatch, match="b: expected float32"):
            step(make(name), params, {"a": params["a"]})
        with pytest.raises(StructureMismatch, match=r"complex64\[3\]"):
            step(make(name), params, params | {"b": jnp.ones(3) * 1j})

    def test_complex_tensors_are_two_and_whole_numbers_none(self, name):
        rng = np.random.default_rng(0)
        a, b, c, d = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in "abcd")
        mixed = {"z": a + 1j * b, "n": jnp.arange(3), "on": jnp.asarray(True), "f": 0.5}
        no = np.zeros(3, jax.dtypes.float0)
        grads = {"z": c + 1j * d, "n": no, "on": None, "f": jnp.float32(0.1)}
        plain = {"z": {"real": a, "imag": b}, "f": jnp.float32(0.5)}
        grads_plain = {"z": {"real": c, "imag": d}, "f": jnp.float32(0.1)}
        opt = make(name, weight_decay=0.1, report=True)

        def both(z: Any, g: Any) -> Any:
            first = step(opt, mixed | {"z": z}, grads | {"z": g})
            return first, step(opt, plain, grads_plain)

        (u, state), (v, other) = quick_jit(both)(mixed["z"], grads["z"])
        # Orthogonalisation amplifies the rounding of two ways to compile one sum.
        close = 1e-4 if name == "learned_muon" else 1e-6
        assert_same(u["z"].real, v["z"]["real"], close)
        assert_same(u["z"].imag, v["z"]["imag"], close)
        assert np.all(u["z"].imag != 0) and u["z"].dtype == jnp.complex64
        assert_same(u["f"], v["f"], 1e-6)
        assert u["n"].dtype == jnp.int32 and not np.any(u["n"])
        assert u["on"].dtype == jnp.bool_ and not u["on"]
        if hasattr(state.rule.tensors, "rest"):
            assert set(state.rule.tensors.rest) == set(other.rule.tensors.rest)

    def test_sixty_four_bits_elsewhere_change_nothing(self, name):
        theta_of(name)  # not inside a trace
        params = params_tree()
        want = jax.eval_shape(lambda p: step(make(name), p, p), params)
        with sixty_four_bits():
            theta = lopax.architecture(name, **SETTINGS[name]).init_theta(
                jax.random.key(0)
            )
            assert {x.dtype for x in jax.tree.leaves(theta)} == {np.dtype("float32")}
            found = jax.eval_shape(lambda p: step(make(name), p, p), params)
            start = jax.eval_shape(make(name).init, params)
            wide = {"w": jax.ShapeDtypeStruct((3, 2), jnp.float64)}
            updates, state = jax.eval_shape(lambda p: step(make(name), p, p), wide)
        assert kinds(found) == kinds(want)
        assert kinds(start) == kinds(want[1])
        assert updates["w"].dtype == np.float64
        dtypes = {str(x.dtype) for x in jax.tree.leaves(state)}
        assert dtypes <= {"float32", "int32"}

    @pytest.mark.parametrize("backend", ["auto", "plain"])
    def test_flags_that_lint_programs(self, name, backend):
        settings = SETTINGS[name]
        if backend == "plain":
            if not hasattr(lopax.architecture(name).config, "backend"):  # type: ignore[attr-defined]
                pytest.skip("one backend only")
            settings = {**settings, "backend": backend}
        rule = lopax.architecture(name, **settings)
        theta = theta_of(name)
        opt = from_rule(rule, theta, num_steps=9, weight_decay=0.1, report=True)
        params = {
            **{f"b{i}": jnp.ones(3) for i in range(3)},
            "c": jnp.ones((2, 2, 3, 3)),
            "s": jnp.ones((), jnp.bfloat16),
            "w": jnp.ones((4, 3), jnp.float16),
        }
        with (
            jax.numpy_rank_promotion("raise"),
            jax.numpy_dtype_promotion("strict"),
            jax.checking_leaks(),
        ):
            found = jax.eval_shape(lambda p: step(opt, p, p), params)
        assert kinds(found[0]) == kinds(params)

    def test_the_state_is_split_boxed_and_mapped_as_its_tensor(self, name):
        mesh = Mesh(np.asarray(jax.devices()[:4]), ("d",))
        params = {"w": jnp.ones((8, 12)), "u": jnp.ones((12, 8)), "b": jnp.ones(8)}
        specs = {"w": P("d", None), "u": P(None, "d"), "b": P("d")}
        split = {
            k: jax.device_put(x, NamedSharding(mesh, specs[k]))
            for k, x in params.items()
        }
        opt = make(name)
        rule = opt.init(split).rule
        plain = jax.jit(opt.init)(params).rule
        assert kinds(rule) == kinds(plain)
        if not hasattr(rule, "tensors"):
            return
        places = trees.named_leaves(rule.tensors)
        for key, x in places.items():
            tensor = key.split("/")[-1 if "like/" in key else 1]
            shape = params[tensor].shape
            where = tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))
            sizes = [n for n in x.shape if n in shape]
            halved = [n for n, s in zip(x.shape, where, strict=True) if s == "d"]
            assert halved == [n for n in sizes if n == 8], (key, x.shape, where)

        seen = []
        state = opt.init(params)
        marked = optax.tree_utils.tree_map_params(
            opt,
            lambda x, p: seen.append(x.shape == p.shape) or "like",
            state,
            params,
            transform_non_params=lambda _: "other",
        )
        assert all(seen) and "other" in jax.tree.leaves(marked)
        assert len(seen) == 3 * len(rule.tensors.like)


HORIZONS = (1, 10, 10**4, 10**6, 3 * 10**7, 10**8, 10**9)


@pytest.mark.parametrize("name", NAMES)
def test_horizons_and_scales_keep_the_step_finite(name):
    theta_of(name)  # not inside a trace

    def run(num_steps: Any, params: Any, grads: Any, losses: Any) -> Any:
        opt = make(name, num_steps)

        def body(carry: Any, loss: Any) -> Any:
            params, state = carry
            updates, state = opt.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, opt.init(params)), losses)[0]

    tree = {"w": jnp.ones((4, 3)), "b": jnp.linspace(-1.0, 1.0, 5)}
    compiled = quick_jit(run)

    @hypothesis.settings(
        max_examples=12, deadline=None, derandomize=True, database=None
    )
    @hypothesis.given(
        horizon=st.sampled_from(HORIZONS),
        sizes=st.tuples(*[st.integers(-30, 30) for _ in "abc"]),
    )
    @hypothesis.example(horizon=10**9, sizes=(30, 30, 30))
    @hypothesis.example(horizon=10**8, sizes=(-30, -30, -30))
    @hypothesis.example(horizon=100, sizes=(20, 0, 0))
    def check(horizon: int, sizes: tuple[int, ...]) -> None:
        p, g, loss = (np.float32(10.0**k) for k in sizes)
        grads = {"w": g * jnp.ones((4, 3)), "b": g * jnp.ones(5)}
        params, state = compiled(
            jnp.asarray(horizon, jnp.int32),
            jax.tree.map(lambda x: p * x, tree),
            grads,
            loss * jnp.linspace(2.0, 1.0, 6),
        )
        for x in jax.tree.leaves((params, state)):
            assert np.all(np.isfinite(np.asarray(x)))
        assert int(state.rule.skipped) == 0

    check()


def test_a_result_that_is_not_finite_is_a_skipped_step():
    """Finite loss, gradient, parameters and rate, and their product is not."""
    rule = lopax.architecture("learned_sgd")
    theta = {"log_lr": jnp.log(1e37), "one_minus_momentum": jnp.log(0.1)}
    for dtype, rate in ((jnp.float32, 1e37), (jnp.float16, 1e4)):
        opt = from_rule(rule, theta | {"log_lr": jnp.log(rate)}, weight_decay=0.1)
        params = {"w": jnp.ones(3, dtype), "b": jnp.ones(2, dtype)}
        grads = {"w": jnp.full(3, 900.0, dtype), "b": jnp.full(2, 1e-3, dtype)}
        updates, state = step(opt, params, grads)
        fresh: Any = opt.init(params)
        assert not any(np.any(u) for u in jax.tree.leaves(updates))
        assert int(state.rule.skipped) == 1
        assert_same(state.rule.tensors, fresh.rule.tensors, 0, 0)
    huge = from_rule(rule, theta | {"log_lr": jnp.float32(200.0)})
    updates, state = step(huge, params, grads)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert int(state.rule.skipped) == 1 and not np.any(state.rule.tensors.rest["w"])


@pytest.mark.parametrize("name", NAMES)
def test_one_update_that_is_not_finite_leaves_every_state(name, monkeypatch):
    """Of rules without a kernel all that there is, of the others what is shared."""
    theta_of(name)
    opt, params = make(name), {"w": jnp.ones((4, 3)), "b": jnp.ones(5)}
    rule: Any = type(lopax.architecture(name, **SETTINGS[name]))
    made: list[bool] = []
    inner = rule.step_or_keep

    def broken(self: Any, theta: Any, context: Any, leaf: Any, *args: Any) -> Any:
        delta, state, seen = inner(self, theta, context, leaf, *args)
        made.append(self.by_kernel(leaf))
        factor = jnp.nan if leaf.name == "w" else 1.0
        return delta * factor, state, None if seen is None else seen * factor

    monkeypatch.setattr(rule, "step_or_keep", broken)
    start = opt.init(params)
    updates, state = opt.update(params, start, params, value=jnp.float32(1.0))
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert int(state.rule.skipped) == 1
    assert_same(state.rule.shared, start.rule.shared, 0, 0)
    assert made
    if not any(made):
        assert_same(state.rule.tensors, start.rule.tensors, 0, 0)


@pytest.mark.parametrize(
    "num_steps", [2.5, "50", b"50", 0, -1, 3e9, 2**31, True, np.nan, np.zeros(2), 1j]
)
def test_a_number_of_steps_that_is_none(num_steps):
    with pytest.raises(ConfigError, match=r"num_steps = .*whole number"):
        make("celo_adam", num_steps)
    with pytest.raises(ConfigError, match=r"num_steps = .*whole number"):
        lopax.extend(make("celo_adam").init(params_tree()), num_steps)


@pytest.mark.parametrize(
    "num_steps", [50.0, np.int64(50), np.float32(50), np.array([50]), jnp.asarray(50)]
)
def test_a_number_of_steps_in_other_forms(num_steps):
    found = make("celo_adam", num_steps).init(params_tree()).rule.num_steps
    assert int(found) == 50 and found.dtype == jnp.int32 and found.shape == ()


def test_the_loss_may_have_an_axis_but_not_several_values():
    params, opt = params_tree(), make("celo_adam")
    want = step(opt, params, params, jnp.float32(2.0))
    assert_same(step(opt, params, params, jnp.full((1,), 2.0)), want, 0, 0)
    with pytest.raises(ConfigError, match=r"value of shape \(8,\).*take the mean"):
        step(opt, params, params, jnp.ones(8))


def test_one_array_for_two_groups_may_be_donated():
    params, horizon = params_tree(), jnp.asarray(40)
    groups = optax.multi_transform(
        {k: make("celo_adam", horizon) for k in "ab"}, {"dense": {"w": "a", "b": "b"}}
    )
    state = groups.init(params)
    arrays = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
    assert len(set(arrays)) == len(arrays)
    longer = jnp.asarray(80)
    for new in (state, lopax.extend(state, longer)):
        new = jax.tree.map(jnp.array, new) if new is state else new
        jax.jit(
            lambda s: groups.update(params, s, params, value=1.0), donate_argnums=0
        )(new)
    assert int(horizon) == 40 and int(longer) == 80


class TestMasks:
    params: ClassVar[Any] = {
        "enc": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)},
        "out": jnp.ones(4),
    }

    def decayed(self, opt: Any, params: Any = None) -> dict[str, bool]:
        params = self.params if params is None else params
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, _ = step(opt, params, grads)
        return {k: bool(np.any(u)) for k, u in trees.named_leaves(updates).items()}

    def make(self, mask: Any) -> Any:
        return make("learned_sgd", weight_decay=0.1, mask=mask)

    def test_a_prefix_of_the_tree(self):
        want = {"enc/w": True, "enc/b": True, "out": False}
        assert self.decayed(self.make({"enc": True, "out": False})) == want
        assert self.decayed(self.make(lambda p: {"enc": True, "out": False})) == want
        assert self.decayed(self.make(True)) == dict.fromkeys(want, True)

    def test_inside_masked_and_groups(self):
        ranks = jax.tree.map(lambda p: p.ndim > 1, self.params)
        for mask in (
            lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree),
            ranks,
            {"enc": ranks["enc"], "out": False},
        ):
            masked = optax.masked(self.make(mask), {"enc": True, "out": False})
            want = {"enc/w": True, "enc/b": False, "out": False}
            assert self.decayed(masked) == want
            groups = optax.multi_transform(
                {"a": self.make(mask), "b": self.make(mask)}, {"enc": "a", "out": "b"}
            )
            assert self.decayed(groups) == want

    def test_another_tree_is_refused(self):
        with pytest.raises(StructureMismatch, match="mask: it must be"):
            self.decayed(self.make({"enc": True}))


def test_a_state_of_other_parameters_is_refused_by_name():
    opt, params = make(CHEAP), {"a": jnp.ones(3), "b": jnp.ones(2)}
    state = opt.init(params)
    renamed = {"a": jnp.ones(3), "c": jnp.ones(2)}
    with pytest.raises(StructureMismatch, match="c: expected nothing"):
        opt.update(renamed, state, renamed, value=1.0)
    for name in ("celo", "celo_adam", "celo2"):
        opt = make(name)
        state = opt.init({"e": jnp.ones((8, 4))})
        resized = {"e": jnp.ones((9, 4))}
        with pytest.raises(StructureMismatch, match=r"e: expected|parameter 'e'"):
            opt.update(resized, state, resized, value=1.0)


def test_a_state_in_a_file_without_a_suffix(tmp_path):
    state = make(CHEAP).init(params_tree())
    lopax.save_state(tmp_path / "state", state)
    assert_same(lopax.load_state(tmp_path / "state", like=state), state, 0, 0)


def test_names_without_the_boxes_of_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

    class Model(nnx.Module):
        def __init__(self, rngs: Any):
            self.embed = nnx.Embed(6, 4, rngs=rngs)
            init = nnx.with_partitioning(nnx.initializers.ones, ("in", "out"))
            self.out = nnx.Linear(4, 3, kernel_init=init, rngs=rngs)

    with jax.set_mesh(jax.make_mesh((1, 1), ("in", "out"))):
        model = Model(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, make("celo2"), wrt=nnx.Param)
    rest = optimizer.opt_state.rule.tensors.rest
    assert set(rest) == {"embed/embedding", "out/bias", "out/kernel"}
    assert "momentum" in rest["embed/embedding"]._fields  # Adam, by its name
    specs = nnx.get_partition_spec(optimizer.opt_state.rule.tensors)
    found = {str(x) for x in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))}
    assert any("P('in', 'out')" in x for x in found)
    assert any("P(None, 'in', 'out')" in x for x in found)


def test_the_boxes_of_linen():
    meta = pytest.importorskip("flax.core.meta", reason="flax is not installed")
    box = meta.Partitioned(jnp.ones((4, 6)), ("in", "out"))
    opt, params = make("celo", accumulate_beyond=25), {"kernel": box}
    state = opt.init(params)
    specs = meta.get_partition_spec(state)
    found = {str(x) for x in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))}
    assert {"P('in', 'out')", "P(None, 'in', 'out')", "P(None, 'out')"} <= {
        x.replace("PartitionSpec", "P") for x in found
    }
    updates, after = jax.jit(lambda s: opt.update(params, s, params, value=1.0))(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("name", ["celo", "celo2", "rnn_mlp"])
def test_programs_that_look_for_nan(name):
    opt, params = make(name), params_tree()
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.debug_nans(True):
        updates, _ = jax.jit(lambda p, g: step(opt, p, g, 0.0))(params, zero)
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("kind", [FullES, PES, TruncatedBackprop])
def test_meta_training_with_sixty_four_bits_elsewhere(kind):
    """The inner problem may compute in float64; theta and its gradient do not."""
    with sixty_four_bits():
        rule = lopax.architecture("celo_adam", **SETTINGS["celo_adam"])
        theta = rule.init_theta(jax.random.key(0))
        horizon = Horizon(low=6, high=6, staggered=False)
        unroller = Unroller(optimizer=rule, family=ParabolaFamily(), horizon=horizon)
        length = {"sigma": 0.1} if kind is FullES else {"truncation": 3}
        settings = ParticleSettings(num_particles=4)
        estimator = kind(unroller=unroller, settings=settings, **length)
        state = jax.eval_shape(estimator.init, theta, jax.random.key(0))
        gradient, after, _ = jax.eval_shape(
            estimator.step, theta, state, jax.random.key(1)
        )
    assert kinds(gradient) == kinds(theta)
    assert [x.dtype for x in jax.tree.leaves(after)] == [
        x.dtype for x in jax.tree.leaves(state)
    ]
