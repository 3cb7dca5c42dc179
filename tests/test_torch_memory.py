"""Whatever a program replaces between two steps: kernels and the plain rule give the
same, or both refuse; nothing depends on torch's defaults."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_common import FUSED_CPU, NAMES, make, needs_compiler

import lopax.torch
from lopax._core.errors import LopaxError, StructureMismatch
from lopax.torch import UnsupportedParameter
from lopax.torch.memory import overlaps_itself, share_memory

SHAPES = [(20, 30), (7,), (3, 4, 5), (6, 6), (20, 30)]
Rng = np.random.Generator
Attack = Callable[[Any, Any, Rng], None]


def own(optimizer: Any, p: Any, rng: Rng) -> tuple[dict[str, Any], str]:
    """A parameter's state, and the name of one of its arrays."""
    state = optimizer.state[p]
    names = [k for k in state if not k.startswith("shared_")]
    return state, names[int(rng.integers(len(names)))]


def state_attack(change: Callable[[torch.Tensor], Any]) -> Attack:
    def attack(optimizer: Any, params: Any, rng: Rng) -> None:
        state, name = own(optimizer, params[int(rng.integers(len(params)))], rng)
        state[name] = change(state[name])

    return attack


def data_attack(change: Callable[[torch.Tensor], Any]) -> Attack:
    def attack(optimizer: Any, params: Any, rng: Rng) -> None:
        p = params[int(rng.integers(len(params)))]
        p.data, p.grad = change(p.data), None

    return attack


def turned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with other strides."""
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def freed(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x.untyped_storage().resize_(max(0, x.nbytes // 2 - 4))
    return x


def in_larger(x: torch.Tensor) -> torch.Tensor:
    """In the middle of more memory."""
    flat = torch.cat([torch.ones(3), x.flatten().float(), torch.ones(5)])
    return flat[3:-5].view(x.shape)


def unaligned(x: torch.Tensor) -> torch.Tensor:
    data = np.zeros(x.nbytes + 1, np.uint8)
    moved = torch.frombuffer(data[1:].data, dtype=x.dtype).view(x.shape)
    return moved.copy_(x)


def swap_states(optimizer: Any, params: Any, rng: Rng) -> None:
    """Two parameters of one shape share an array."""
    state, name = own(optimizer, params[0], rng)
    state[name] = optimizer.state[params[-1]][name]


def drop_state(optimizer: Any, params: Any, rng: Rng) -> None:
    state, name = own(optimizer, params[2], rng)
    del state[name]


def tie(optimizer: Any, params: Any, rng: Rng) -> None:
    params[0].data = params[-1].data


def overlap(optimizer: Any, params: Any, rng: Rng) -> None:
    flat = torch.randn(900, generator=torch.Generator().manual_seed(1))
    params[0].data, params[-1].data = flat[:600].view(20, 30), flat[300:].view(20, 30)


def shrink_in_place(optimizer: Any, params: Any, rng: Rng) -> None:
    params[0].data.untyped_storage().resize_(100)


def resize_state(optimizer: Any, params: Any, rng: Rng) -> None:
    state, name = own(optimizer, params[3], rng)
    state[name].resize_(2)


def nothing(optimizer: Any, params: Any, rng: Rng) -> None:
    pass


ATTACKS: dict[str, Attack] = {
    "nothing": nothing,
    "larger data": data_attack(lambda x: torch.cat([x, x])),
    "data of another rank": data_attack(lambda x: x.reshape(1, -1)),
    "flat data": data_attack(lambda x: x.flatten()),
    "turned data": data_attack(turned),
    "bfloat16 data": data_attack(lambda x: x.bfloat16()),
    "float64 data": data_attack(lambda x: x.double()),
    "negated data": data_attack(lambda x: torch._neg_view(x)),  # type: ignore[attr-defined]
    "freed data": data_attack(freed),
    "expanded data": data_attack(lambda x: x[:1].expand(x.shape)),
    "data in a larger buffer": data_attack(in_larger),
    "unaligned data": data_attack(unaligned),
    "tied data": tie,
    "overlapping data": overlap,
    "shrunk storage": shrink_in_place,
    "bfloat16 state": state_attack(lambda x: x.bfloat16()),
    "half state": state_attack(lambda x: x.half()),
    "float64 state": state_attack(lambda x: x.double()),
    "integer state": state_attack(lambda x: x.int()),
    "turned state": state_attack(turned),
    "negated state": state_attack(lambda x: torch._neg_view(-x)),  # type: ignore[attr-defined]
    "larger state": state_attack(lambda x: torch.cat([x[None], x[None]])),
    "flat state": state_attack(lambda x: x.flatten()[1:]),
    "expanded state": state_attack(lambda x: x.flatten()[:1].expand(x.numel())),
    "freed state": state_attack(freed),
    "state without memory": state_attack(lambda x: x.to("meta")),
    "state in a larger buffer": state_attack(in_larger),
    "unaligned state": state_attack(unaligned),
    "sparse state": state_attack(lambda x: x.to_sparse()),
    "no state": state_attack(lambda x: None),
    "a number for state": state_attack(lambda x: 3.0),
    "shared state": swap_states,
    "missing state": drop_state,
    "resized state": resize_state,
}

GRADS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "plain": lambda p, g: g,
    "turned": lambda p, g: turned(g),
    "negated": lambda p, g: torch._neg_view(g),  # type: ignore[attr-defined]
    "expanded": lambda p, g: g.flatten()[:1].expand(g.numel()).view(g.shape),
    "the parameter": lambda p, g: p.detach(),
    "in a larger buffer": lambda p, g: in_larger(g).to(g.dtype),
    "freed": lambda p, g: freed(g),
}


def attacked(name: str, backend: str, seed: int) -> tuple[Any, list[str]]:
    """Parameters and states after some steps with attacks between them, or the error;
    and what was done."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    optimizer = make(name, params, backend=backend, weight_decay=0.1)
    done = []
    for step in range(4):
        kinds = [
            str(rng.choice([*GRADS])) if rng.random() < 0.2 else "plain" for _ in params
        ]
        try:
            for p, kind in zip(params, kinds, strict=True):
                grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
                p.grad = GRADS[kind](p, grad)
            done += [kind for kind in kinds if kind != "plain"]
        except RuntimeError:
            return "torch", done
        try:
            optimizer.step(loss=1.0 / (1 + step))
        except LopaxError as error:
            return type(error), done
        if step < 3 and rng.random() < 0.6:
            attack = str(rng.choice([*ATTACKS]))
            ATTACKS[attack](optimizer, params, rng)
            done.append(attack)
    states = [v for s in optimizer.state.values() for v in s.values()]
    return [*(p.detach() for p in params), *states], done


@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_the_plain_rule_give_the_same_or_both_refuse(name):
    needs_compiler()
    kinds = {"refused": 0, "equal": 0}
    for seed in range(40 if name in FUSED_CPU else 8):
        plain, done = attacked(name, "plain", seed)
        fused, _ = attacked(name, "auto", seed)
        if not isinstance(plain, list):
            assert fused == plain, (seed, done)
            kinds["refused"] += 1
            continue
        assert isinstance(fused, list), (seed, done, fused)
        kinds["equal"] += 1
        for a, b in zip(plain, fused, strict=True):
            coarse = a.dtype == torch.bfloat16
            torch.testing.assert_close(
                a,
                b,
                rtol=2e-2 if coarse else 2e-4,
                atol=1e-2 if coarse else 1e-6,
                msg=lambda text, seed=seed, done=done: f"{seed} {done}: {text}",
            )
    if name in FUSED_CPU:
        assert min(kinds.values()) > 5, kinds


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", FUSED_CPU)
def test_every_attack_ends_in_a_step_or_a_clear_error(name, attack, backend):
    params = [torch.nn.Parameter(torch.ones(s) * 0.1) for s in SHAPES]
    optimizer = make(name, params, backend=backend)

    def step() -> None:
        for p in params:
            p.grad = torch.full(p.shape, 0.1, dtype=p.dtype)
        optimizer.step(loss=1.0)

    step()
    before = [(p.data_ptr(), p.detach().clone()) for p in params]
    ATTACKS[attack](optimizer, params, np.random.default_rng(0))
    try:
        step()
    except (StructureMismatch, UnsupportedParameter) as error:
        assert "parameter" in str(error)
        # Nothing was stepped.
        for p, (place, old) in zip(params, before, strict=True):
            same = p.data_ptr() == place and p.shape == old.shape
            if same and p.is_contiguous():  # else it shows other elements
                assert torch.equal(p.detach(), old)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_resized_parameter_is_refused_by_name_with_both_shapes(name, backend):
    embedding = torch.nn.Embedding(20, 4)
    optimizer = make(name, embedding.named_parameters(), backend=backend)

    def step() -> None:
        optimizer.zero_grad()
        embedding(torch.arange(20)).square().mean().backward()
        optimizer.step(loss=1.0)

    step()
    embedding.weight.data = torch.cat([embedding.weight.data, torch.zeros(50, 4)])
    with pytest.raises(StructureMismatch) as caught:
        step()
    for told in ("'weight'", "70, 4", "20, 4", "del optimizer.state[param]"):
        assert told in str(caught.value)
    del optimizer.state[embedding.weight]
    step()
    assert int(optimizer.info().iteration) == 2


def test_a_gradient_from_before_the_data_was_replaced_is_refused():
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = make("celo", [("w", p)])
    p.grad = torch.ones(4, 3)
    p.data = torch.ones(5, 3)
    with pytest.raises(StructureMismatch, match="gradient of parameter 'w'"):
        optimizer.step(loss=1.0)


@pytest.fixture
def defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_depends_on_torch_s_defaults(name, backend, dtype, defaults):
    results = []
    for changed in (False, True):
        params = [
            torch.nn.Parameter(torch.linspace(-1, 1, 12).view(s).float())
            for s in [(4, 3), (12,), (2, 2, 3)]
        ]
        grads = [torch.cos(7.0 * p.detach()) for p in params]
        if changed:
            torch.set_default_dtype(dtype)
            torch.set_default_device("meta")
        optimizer = make(name, params, backend=backend, weight_decay=0.1)
        for step in range(3):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            optimizer.observe(1.0 / (1 + step))
            optimizer.step()
            if step == 1:
                optimizer.load_state_dict(optimizer.state_dict())
        optimizer.set_num_steps(60)
        states = [v for s in optimizer.state.values() for v in s.values()]
        results.append([*(p.detach() for p in params), *states])
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and a.device == b.device
        assert torch.equal(a, b)


FACTORIES = {
    *("zeros", "ones", "full", "empty", "tensor", "as_tensor", "arange", "linspace"),
    *("eye", "rand", "randn", "logspace", "scalar_tensor", "randint", "randperm"),
}


def test_every_tensor_is_made_with_its_dtype_and_device():
    for file in Path(lopax.torch.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute
            ):
                continue
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id == "torch"):
                continue
            if node.func.attr in FACTORIES:
                named = {k.arg for k in node.keywords}
                told = named >= {"dtype", "device"} or None in named
                assert told, f"{file.name}:{node.lineno}"


def test_memory_that_is_shared():
    def shared(*arrays: tuple[int, int, bool]) -> bool:
        starts, sizes, written = (np.array(x) for x in zip(*arrays, strict=True))
        return share_memory(starts.astype(np.int64), sizes, written)

    assert not shared((0, 8, True), (8, 8, True), (16, 8, False))
    assert shared((0, 12, True), (8, 8, True))
    assert shared((8, 8, False), (0, 12, True))
    assert not shared((8, 8, False), (0, 12, False))
    assert shared((0, 400, False), (8, 8, False), (100, 8, True))
    assert not shared((0, 8, True), (0, 0, True))
    assert shared((2, 8, True))
    x = torch.zeros(4, 6)
    for good in (
        x,
        x.T,
        x[:, ::2],
        x[:1].expand(1, 6),
        x.view(2, 2, 6).permute(2, 0, 1),
    ):
        assert not overlaps_itself(good)
    for bad in (x[:1].expand(3, 6), x.as_strided((3, 3), (1, 1))):
        assert overlaps_itself(bad)
