"""Momenta in bfloat16 and bytes: the formats, and every rule in torch and JAX."""

from __future__ import annotations

import copy
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax_rules
import pytest
import torch
from optax_rules import compact_programs  # noqa: F401
from quick_compile import quick_compilation, quick_jit  # noqa: F401
from torch_common import NAMES, SETTINGS, make, needs_compiler, values

import lopax
import lopax.torch as lt
from lopax import inventory
from lopax._core import narrow
from lopax._core.errors import ConfigError, StructureMismatch
from lopax.blocks import narrow_momenta
from lopax.torch import narrow as torch_narrow
from lopax.torch import narrow_backend
from lopax.torch.narrow import Stored
from lopax.torch.settings import with_settings

FORMATS = ("bfloat16", "int8")
WITH_MOMENTA = tuple(
    name
    for name in NAMES
    if torch_narrow.has_momenta(
        with_settings(lt.RULES[name].rule_class, SETTINGS.get(name, {}))
    )
)


# --- the formats -------------------------------------------------------------------


def numbers(*shape: int) -> np.ndarray:
    """Of many sizes, some of them zero, with a row of zeros and one of tiny ones."""
    generator = np.random.default_rng(len(shape))
    x = generator.standard_normal(shape) * np.exp(3 * generator.standard_normal(shape))
    x[..., ::7] = 0.0
    x[..., 1, :] = 0.0
    x[..., 2, :] = 1e-36
    return x.astype(np.float32)


def in_torch(x: np.ndarray, front: int, step: int, axis: int = 0) -> Stored:
    """An array as torch keeps it in bytes."""
    shape = x.shape[front:]
    blocks = narrow.Blocks.of(shape, axis)
    assert blocks is not None
    codes = torch.empty(x.shape, dtype=torch.int8)
    units = torch.empty((*x.shape[:front], blocks.rows, blocks.blocks))
    kept = Stored(codes, units, front + axis)
    torch_narrow.write([kept], [torch.tensor(x)], count(step), None)
    return kept


def count(n: int) -> torch.Tensor:
    return torch.tensor(n, dtype=torch.int32)


@pytest.mark.parametrize("shape", [(3, 8, 700), (4, 16), (2, 5, 3, 100)])
def test_jax_and_torch_keep_the_same_bits(shape):
    x, front = numbers(*shape), len(shape) - 2 if len(shape) == 3 else 0
    rounded = narrow_momenta.round_stochastically(jnp.asarray(x), jnp.int32(5))
    kept = Stored(torch.empty(shape, dtype=torch.bfloat16), None, 0)
    torch_narrow.write([kept], [torch.tensor(x)], count(5), None)
    np.testing.assert_array_equal(
        kept.array.view(torch.int16).numpy(), np.asarray(rounded).view(np.int16)
    )
    here = narrow_momenta.in_blocks(jnp.asarray(x), front, jnp.int32(5))
    there = in_torch(x, front, 5)
    np.testing.assert_array_equal(there.array.numpy(), here.codes)
    np.testing.assert_array_equal(there.units, here.units)
    (wide,) = torch_narrow.widened([there])
    np.testing.assert_array_equal(wide.numpy(), narrow_momenta.of_blocks(here))


@pytest.mark.parametrize("part", [1 << 9, 1 << 17])
def test_arrays_together_or_in_parts_have_the_same_bits(part, monkeypatch):
    arrays = [numbers(3, 8, 700), numbers(3, 6, 700), numbers(5, 40)]
    alone = [in_torch(x, x.ndim - 2, 2) for x in arrays]
    together = [
        x._replace(array=x.array.clone(), units=_units(x).clone()) for x in alone
    ]
    monkeypatch.setattr(torch_narrow, "CPU_PART", part)
    torch_narrow.write(together, [torch.tensor(x) for x in arrays], count(2), None)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.array, b.array)
        assert torch.equal(_units(a), _units(b))
    # Where a device must not be waited for, a step that is not made is only known so.
    others = [torch.ones(x.shape) for x in arrays]
    for alive, changes in ((0.0, False), (1.0, True)):
        before = [x.array.clone() for x in together]
        torch_narrow.write(together, others, count(3), torch.tensor(alive))
        for x, old in zip(together, before, strict=True):
            assert torch.equal(x.array, old) != changes
    torch_narrow.write(together, [torch.tensor(x) for x in arrays], count(2), None)
    for a, b in zip(alone, torch_narrow.widened(together), strict=True):
        assert torch.equal(torch_narrow.widened([a])[0], b)


def test_rows_may_lie_along_another_axis():
    x = numbers(3, 8, 20, 30)
    kept = in_torch(x, 1, 4, axis=1)
    turned = in_torch(np.ascontiguousarray(x.swapaxes(1, 2)), 1, 4)
    assert torch.equal(kept.array, turned.array.transpose(1, 2))
    (wide,), (other,) = torch_narrow.widened([kept]), torch_narrow.widened([turned])
    assert torch.equal(wide, other.transpose(1, 2))


def test_codes_are_ordered_and_stand_for_themselves():
    codes, one = torch.arange(-127, 128, dtype=torch.int32), torch.ones(1)
    found = narrow.decode(torch_narrow._WORDS, codes, one)
    assert (found.diff() > 0).all()
    assert found[127] == 0.0 and found[-1] == narrow.LARGEST == -found[0]
    for step in range(5):
        again = narrow.encode(torch_narrow._WORDS, found, one, count(step))
        assert torch.equal(again, codes)


def _units(x: torch_narrow.Stored) -> torch.Tensor:
    assert x.units is not None
    return x.units


def spacing(x: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """The most that a byte may be off for numbers [rows, blocks, n]."""
    size = 1.0 + (x.abs() / units.clamp_min(1e-37))
    return units * 2.0 ** (size.log2().floor() - narrow.MANTISSA)


def test_bytes_are_neighbours_right_on_average_and_keep_zero():
    x = numbers(4, 256)
    steps = 600
    kept = [in_torch(x, 0, step) for step in range(steps)]
    most = spacing(torch.tensor(x), _units(kept[0]))
    many = torch.stack([torch_narrow.widened([k])[0] for k in kept])
    reached = torch.tensor(np.abs(x) > 1e-30)
    assert (many[:, ~reached] == 0.0).all()  # 1e-36 is below what is resolved
    off = (many - torch.tensor(x)).abs()
    assert (off <= 1.001 * most)[:, reached].all()
    mean = (many.mean(0) - torch.tensor(x)).abs()
    # Five times what the mean of so many is off by, at worst.
    assert (mean[reached] <= 5 * 0.5 * most[reached] / steps**0.5).all()


def test_slow_momenta_do_not_freeze_in_bytes():
    target = np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(2, 32)
    m = np.zeros((2, 32), np.float32)
    for step in range(800):
        m = 0.99 * m + np.float32(0.01) * target
        m = torch_narrow.widened([in_torch(m, 0, step)])[0].numpy()
    assert np.abs(m / target - 1.0).max() < 0.25
    assert abs((m / target).mean() - 1.0) < 0.05


# --- every rule in torch -----------------------------------------------------------


def model() -> Any:
    """A matrix in blocks, one that is too narrow for it, vectors; of the first, inputs
    and so the gradients of one column are zero."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(20, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    )


def train(net: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 20, generator=generator)
        x[:, 4] = 0.0
        loss = (net(x) - x[:, :3].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)


def narrow_run(name: str, dtype: str, steps: int, **options: Any) -> tuple[Any, Any]:
    net = model()
    optimizer = make(name, net.parameters(), momentum_dtype=dtype, **options)
    train(net, optimizer, range(steps))
    return net, optimizer


def same(a: Any, b: Any) -> bool:
    """Whether two state dicts have the same bits."""
    a, b = a["state"], b["state"]
    return a.keys() == b.keys() and all(
        torch.equal(x, b[i][k]) and x.dtype == b[i][k].dtype
        for i in a
        for k, x in a[i].items()
    )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", WITH_MOMENTA)
def test_a_narrow_step_is_the_wide_step_but_for_rounding(name, dtype):
    net, optimizer = narrow_run(name, dtype, 2)
    twin = copy.deepcopy(net)
    wide = make(name, twin.parameters())
    wide.load_state_dict(optimizer.state_dict())  # exactly what is kept, in float32
    train(net, optimizer, range(2, 3))
    train(twin, wide, range(2, 3))
    assert torch.equal(values(net), values(twin))
    assert not torch.equal(values(net), values(model()))
    assert optimizer.info().momentum_dtype == dtype
    column = net[0].weight[:, 4]
    assert torch.equal(column, twin[0].weight[:, 4])
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        field = "momenta" if "momenta" in wide.state[q] else "momentum"  # by the role
        state, exact = optimizer.state[p], wide.state[q][field]
        kept, units = state[field], state.get(field + torch_narrow.UNITS)
        if dtype == "int8" and min(p.shape[1:], default=0) < narrow.MIN_ROW:
            assert torch.equal(kept, exact)
        elif dtype == "int8":
            assert kept.dtype == torch.int8 and units is not None
            front = kept.ndim - 2
            found = torch_narrow.widened([Stored(kept, units, front)])[0]
            most = spacing(exact, units)  # of one block a row
            assert ((found - exact).abs() <= 1.001 * most).all()
            assert (found - exact).abs().max() > 0.0
            assert (kept[..., 4] == 0).all()
        else:
            assert kept.dtype == torch.bfloat16
            assert ((kept.float() - exact).abs() <= 2.0**-7 * exact.abs()).all()
        others = state.keys() - {field, field + torch_narrow.UNITS}
        assert all(torch.equal(state[k], wide.state[q][k]) for k in others)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", WITH_MOMENTA)
def test_a_narrow_run_resumes_to_the_bit(name, dtype):
    net, optimizer = narrow_run(name, dtype, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    again = copy.deepcopy(net)
    file.seek(0)
    resumed = make(name, again.parameters(), momentum_dtype=dtype)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(optimizer.state_dict(), resumed.state_dict())
    train(net, optimizer, range(3, 5))
    train(again, resumed, range(3, 5))
    assert torch.equal(values(net), values(again))
    assert same(optimizer.state_dict(), resumed.state_dict())
    # A step that is not made changes nothing that is kept.
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.step(loss=float("nan"))
    for i, state in optimizer.state_dict()["state"].items():
        for key, x in state.items():
            counts = key in ("shared_iteration", "shared_skipped")
            assert counts or torch.equal(x, before["state"][i][key]), key


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", ["celo", "celo2", "velo"])
def test_kernels_step_narrow_momenta(name, dtype):
    needs_compiler()
    plain, _ = narrow_run(name, dtype, 1, backend="plain")
    fused, optimizer = narrow_run(name, dtype, 1, backend="fused")
    torch.testing.assert_close(values(fused), values(plain), rtol=1e-4, atol=1e-6)
    assert "fused" in optimizer.info().backends["cpu"]


@pytest.mark.parametrize("name", ["celo", "learned_muon"])
def test_tensors_may_be_stepped_some_at_a_time(name, monkeypatch):
    whole, _ = narrow_run(name, "int8", 1, backend="plain")
    monkeypatch.setattr(narrow_backend, "WIDE", 30)
    some, optimizer = narrow_run(name, "int8", 1, backend="plain")
    torch.testing.assert_close(values(some), values(whole), rtol=1e-5, atol=1e-7)
    copied = copy.deepcopy(optimizer)
    assert same(copied.state_dict(), optimizer.state_dict())
    train(some, optimizer, range(1, 3))
    assert optimizer.info().momentum_dtype == "int8"


def test_a_state_of_another_format_is_brought_to_the_asked_one():
    for name, kept in (("celo", "int8"), ("celo_adam", "bfloat16")):
        net, optimizer = narrow_run(name, "float32", 3)
        other = make(name, copy.deepcopy(net).parameters(), momentum_dtype=kept)
        other.load_state_dict(optimizer.state_dict())
        for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
            for key, x in b.items():
                if x.dtype in (torch.int8, torch.bfloat16):
                    units = b.get(key + torch_narrow.UNITS)
                    found = torch_narrow.widened([Stored(x, units, x.ndim - 2)])[0]
                    error = (found - a[key]).norm() / a[key].norm()
                    assert 0.0 < error < 0.03
                elif not key.endswith(torch_narrow.UNITS):
                    assert torch.equal(x, a[key])
    bad = copy.deepcopy(other.state_dict())
    bad["state"][0]["momentum"] = bad["state"][0]["momentum"].double()
    with pytest.raises(StructureMismatch, match="momentum"):
        other.load_state_dict(bad)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_stack_keeps_what_its_tensors_would(dtype):
    torch.manual_seed(0)
    stacked = torch.nn.Parameter(torch.randn(3, 6, 20))
    alone = [torch.nn.Parameter(x.clone()) for x in stacked.detach()]
    options = {"momentum_dtype": dtype, "backend": "plain"}
    routes = (lt.Route(stack_axes=(0,)),)
    one = make("celo", [stacked], routes=routes, **options)
    three = make("celo", alone, **options)
    for step in range(3):
        stacked.grad = torch.randn(3, 6, 20)
        for p, g in zip(alone, stacked.grad, strict=True):
            p.grad = g.clone()
        one.step(loss=1.0 / (1 + step))
        three.step(loss=1.0 / (1 + step))
    for i, p in enumerate(alone):
        torch.testing.assert_close(stacked[i], p)
        assert torch.equal(one.state[stacked]["momenta"][i], three.state[p]["momenta"])


def test_a_compiled_step_keeps_bytes():
    params = [torch.nn.Parameter(torch.ones(4, 20)), torch.nn.Parameter(torch.ones(3))]
    twins = copy.deepcopy(params)
    options = {"backend": "plain", "momentum_dtype": "int8"}
    optimizer = make("learned_sgd", params, compilable=True, **options)
    eager = make("learned_sgd", twins, **options)
    torch._dynamo.reset()
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(3):
        for p, q in zip(params, twins, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        step(loss=torch.tensor(1.0 / (1 + i)))
        eager.step(loss=torch.tensor(1.0 / (1 + i)))
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q)
    assert optimizer.state[params[0]]["momentum"].dtype == torch.int8
    assert optimizer.state[params[0]]["momentum"].abs().max() == 127


def test_names_and_rules_that_cannot_be_are_refused():
    net = model()
    with pytest.raises(ConfigError, match="'celo' = 'float16': must be one of"):
        make("celo", net.parameters(), momentum_dtype="float16")
    for name in set(NAMES) - set(WITH_MOMENTA):
        with pytest.raises(ConfigError, match=f"{name!r} has no momenta.*'float32'"):
            make(name, net.parameters(), momentum_dtype="int8")


# --- every rule in JAX -------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_MOMENTA)
def test_bytes_of_every_rule_in_jax(name):
    """What is packed is unpacked as neighbours; nothing but momenta changes."""
    rule, theta = optax_rules.rule_of(name), optax_rules.theta_of(name)
    params = {"w": jnp.ones((5, 20)), "b": jnp.ones(3), "c": jnp.ones((2, 3, 4, 5))}
    packing = narrow_momenta.choose(rule, "int8")
    like = jax.eval_shape(lambda: rule.init(theta, params, 10))
    start = jax.eval_shape(lambda: packing.start(rule.init(theta, params, 10), params))

    def fill(x: Any) -> Any:
        made = np.random.default_rng(x.size).standard_normal(x.shape)
        return made.astype(x.dtype)

    filled = jax.tree.map(fill, like)

    def both(state: Any) -> Any:
        packed = packing.pack(state, params)
        return packed, packing.unpack(packed)

    packed, found = quick_jit(both)(filled)
    assert jax.tree.map(jnp.shape, packed) == jax.tree.map(jnp.shape, start)
    kinds = {x.dtype.name for x in jax.tree.leaves(packed.tensors["w"])}
    assert "int8" in kinds and "int8" not in {
        x.dtype.name for x in jax.tree.leaves(packed.tensors["b"])
    }
    off = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(filled), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        off = max(off, float(difference.max(initial=0.0)))
        assert (difference <= 0.07 * np.abs(b) + 2e-3).all()
    assert 0.0 < off < 0.3


@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_a_run_in_bytes_in_jax(name):
    params = {"w": jnp.linspace(-1.0, 1.0, 120).reshape(6, 20), "b": jnp.ones(3)}
    wide = optax_rules.make(name)
    opt = optax_rules.make(name, momentum_dtype="int8")

    def run(opt: Any) -> Any:
        def body(carry: Any, t: Any) -> Any:
            params, state = carry
            grads = jax.tree.map(lambda p: p + jnp.sin(t), params)
            grads["w"] = grads["w"].at[:, 3].set(0.0)
            moves, state = opt.update(grads, state, params, value=2.0 / (1.0 + t))
            moved = jax.tree.map(jnp.add, params, moves)
            return (moved, state), None

        start = (params, opt.init(params))
        return jax.lax.scan(body, start, jnp.arange(12.0))[0]

    (a, _), (b, state) = quick_jit(lambda: run(wide))(), quick_jit(lambda: run(opt))()
    for x, y, first in zip(*map(jax.tree.leaves, (a, b, params)), strict=True):
        assert np.linalg.norm(x - y) < 0.05 * np.linalg.norm(x - first)
    np.testing.assert_array_equal(b["w"][:, 3], params["w"][:, 3])
    bad = {"w": params["w"].at[0, 0].set(jnp.inf), "b": params["b"]}
    _, after = quick_jit(lambda *of: opt.update(*of, value=1.0))(bad, state, b)
    for x, y in zip(*map(jax.tree.leaves, (after.rule, state.rule)), strict=True):
        if np.ndim(x) > 0:
            np.testing.assert_array_equal(x, y)
    assert int(after.rule.skipped) == 1


def test_a_stack_in_jax_keeps_what_its_tensors_would():
    w = jnp.asarray(numbers(3, 6, 20))
    options = {"momentum_dtype": "int8"}
    one = optax_rules.make("celo", routes=(lopax.Route(stack_axes=(0,)),), **options)
    state = jax.eval_shape(one.init, {"w": w})
    kept = state.rule.tensors.rest["w"].momenta
    assert kept.codes.shape == (3, 3, 6, 20) and kept.units.shape == (3, 3, 6, 1)


def test_bytes_per_parameter_are_listed():
    (facts,) = inventory.optimizer_facts("celo")
    half, least = facts.narrow_bytes_per_parameter, facts.int8_bytes_per_parameter
    assert 16.0 <= facts.bytes_per_parameter < 16.2
    assert half is not None and 10.0 <= half < 10.2
    assert least is not None and 7.0 <= least < 7.2
