"""Steps of the torch rules at any scale: finite parameters, or a step that is counted.

The same for JAX: `test_horizons_and_scales_keep_the_step_finite`.
"""

from __future__ import annotations

import copy
from typing import Any

import hypothesis
import pytest
import rule_table
import torch
from hypothesis import strategies as st
from torch_common import NAMES, make, needs_compiler, random_theta

from lopax.torch.batch import Advance
from lopax.torch.rule import Rule

pytestmark = pytest.mark.filterwarnings("ignore::lopax.torch.LopaxWarning")

SCALES = st.integers(-30, 30)
HORIZONS = (1, 10, 10**6, 3 * 10**7, 5 * 10**7, 10**9)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = float(torch.finfo(torch.float32).max)


@pytest.fixture(params=rule_table.rows("torch", "plain", "fused"), ids="-".join)
def kind(request):
    if request.param[1] == "fused":
        needs_compiler()
    return request.param


def tensors(dtype: torch.dtype, scale: float) -> list[torch.nn.Parameter]:
    scale = min(scale, torch.finfo(dtype).max / 4)
    start = [torch.linspace(-1.0, 2.0, 20).reshape(5, 4), torch.ones(3)]
    start += [torch.ones(()), torch.full((2, 3, 2), -0.5)]
    return [torch.nn.Parameter((scale * x).to(dtype)) for x in start]


def give(params: list[torch.nn.Parameter], scale: float) -> None:
    for p in params:
        g = torch.linspace(-1.0, 2.0, p.numel()).reshape(p.shape)
        p.grad = (min(scale, torch.finfo(p.dtype).max / 4) * g).to(p.dtype)


def everything(params: Any, optimizer: Any) -> list[torch.Tensor]:
    """Parameters and state, without what counts steps."""
    found = [p.detach().clone() for p in params]
    for p in params:
        for key, x in sorted(optimizer.state[p].items()):
            if key not in ("shared_iteration", "shared_skipped"):
                found.append(torch.as_tensor(x).clone())
    shared = {
        k: x
        for k, x in optimizer._shared.items()
        if k not in ("iteration", "skipped", "num_steps")
    }
    return found + [shared[k].clone() for k in sorted(shared)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_horizons_scales_and_dtypes(kind):
    name, backend = kind

    @hypothesis.settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @hypothesis.given(
        horizon=st.sampled_from(HORIZONS),
        dtype=st.sampled_from(DTYPES),
        sizes=st.tuples(SCALES, SCALES, SCALES),
        decay=st.sampled_from((0.0, 0.1)),
        poison=st.sampled_from((None, None, "loss", "gradient")),
    )
    @hypothesis.example(10**9, torch.float32, (30, 30, 30), 0.0, None)
    @hypothesis.example(10**9, torch.float32, (20, 0, 0), 0.1, None)
    @hypothesis.example(10**9, torch.float32, (-30, -30, -30), 0.0, None)
    @hypothesis.example(5 * 10**7, torch.float16, (30, 30, 0), 0.1, None)
    def check(horizon, dtype, sizes, decay, poison):
        p, g, loss = (10.0**k for k in sizes)
        params = tensors(dtype, p)
        optimizer = make(name, params, horizon, backend=backend, weight_decay=decay)
        for _ in range(3):
            give(params, g)
            optimizer.step(loss=loss)
            assert int(optimizer.info().skipped) == 0
            assert all(torch.isfinite(x).all() for x in everything(params, optimizer))
        if poison is None:
            return
        before = everything(params, optimizer)
        if poison == "gradient":
            params[1].grad[1] = float("inf")  # type: ignore[index]
        optimizer.step(loss=float("nan") if poison == "loss" else loss)
        assert same(before, everything(params, optimizer))
        assert int(optimizer.info().skipped) == 1

    check()


def test_what_would_leave_the_dtype_stays_and_is_counted(kind):
    """The largest parameters there are, and steps that are as large."""
    name, backend = kind
    for dtype, lr in (
        (torch.float32, 1e38),
        (torch.float32, LARGEST),
        (DTYPES[2], 1e7),
    ):
        params = [torch.nn.Parameter(p.detach()) for p in tensors(dtype, 1.0)]
        with torch.no_grad():
            params[0].fill_(torch.finfo(dtype).max).neg_()
            params[1].fill_(torch.finfo(dtype).max)
        optimizer = make(name, params, 50, backend=backend, lr=lr, weight_decay=1e6)
        for _ in range(4):
            give(params, 1.0)
            optimizer.step(loss=1.0)
            found = everything(params, optimizer)
            assert all(torch.isfinite(x).all() for x in found), (dtype, lr)
        if dtype == torch.float32:
            assert int(optimizer.info().skipped) > 0


def test_a_theta_of_which_nothing_is_finite_moves_nothing(kind):
    """Every weight of a network as large as can be."""
    name, backend = kind
    theta = {k: x * 0 + 3e38 for k, x in random_theta(name).items()}
    for k in theta:
        if k.startswith("decays/"):
            theta[k] = theta[k] * 0
    params = tensors(torch.float32, 1.0)
    optimizer = make(name, params, 50, backend=backend, theta=theta)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        give(params, 1.0)
        optimizer.step(loss=1.0)
        found = everything(params, optimizer)
        assert all(torch.isfinite(x).all() for x in found)
    moved = not same(before, [p.detach() for p in params])
    assert moved or int(optimizer.info().skipped) == 3


@pytest.mark.parametrize("part", ["shared", "scale", "told", "common", "carried"])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_tensors_share_must_be_finite(name, part, monkeypatch):
    params = tensors(torch.float32, 1.0)
    optimizer = make(name, params, 50)
    give(params, 1.0)
    optimizer.step(loss=1.0)
    advance = Rule.advance

    def broken(self, *args) -> Advance:
        found = advance(self, *args)
        common = found.common
        if part == "scale":
            scale = common.scale * float("inf")
            return found._replace(common=common._replace(scale=scale))
        arrays = dict(common.told if part == "common" else getattr(found, part))
        floats = [k for k, x in arrays.items() if x.is_floating_point() and x.numel()]
        if not floats:
            pytest.skip(f"{name} has nothing {part}")
        arrays[floats[0]] = arrays[floats[0]] * float("nan")
        if part == "common":
            return found._replace(common=common._replace(told=arrays))
        return found._replace(**{part: arrays})

    monkeypatch.setattr(Rule, "advance", broken)
    before = everything(params, optimizer)
    optimizer.step(loss=1.0)
    assert same(before, everything(params, optimizer))
    assert int(optimizer.info().skipped) == 1
    monkeypatch.setattr(Rule, "advance", advance)
    optimizer.step(loss=1.0)
    assert not same(before, everything(params, optimizer))


@pytest.mark.parametrize("name", NAMES)
def test_one_tensor_whose_update_is_not_finite(name, monkeypatch):
    """Parameters stay finite, the tensor stays where it is, the step is counted."""
    params = tensors(torch.float32, 1.0)
    optimizer = make(name, params, 50, backend="plain")
    step = Rule.step
    bad = float("nan")

    def broken(self, tensors_, *args):
        update = yield from step(self, tensors_, *args)
        return update * bad if tensors_.place.rank == 2 else update

    monkeypatch.setattr(Rule, "step", broken)
    before = copy.deepcopy([p.detach() for p in params])
    give(params, 1.0)
    optimizer.step(loss=1.0)
    assert torch.equal(params[0].detach(), before[0])
    assert int(optimizer.info().skipped) == 1
    assert all(torch.isfinite(x).all() for x in everything(params, optimizer))
