"""Large tensors in parts, and quick tests of finiteness, change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_common import NAMES, make

from lopax.torch import plain
from lopax.torch.finite import look, some_not_finite

NAN, INF = float("nan"), float("inf")


def trained(learned: bool) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    torch.manual_seed(0)
    shapes = [(90, 20), (4000,), (30, 20), (50, 40)]
    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    names = ("embedding.weight", "bias", "a.weight", "wte.weight")
    optimizer = make(
        *("learned_muon", list(zip(names, params, strict=True))),
        **{"num_steps": 20, "weight_decay": 0.1, "settings": {"learned": learned}},
    )
    for step in range(4):
        for p in params:
            p.grad = torch.randn_like(p) * (INF if step == 2 else 1.0)
        optimizer.step(loss=1.0)
    return [p.detach() for p in params], [optimizer.state[p] for p in params]


@pytest.mark.parametrize("learned", [False, True])
def test_parts_of_a_tensor_are_stepped_as_the_whole(
    monkeypatch: pytest.MonkeyPatch, learned: bool
) -> None:
    whole, states = trained(learned)
    monkeypatch.setattr(plain, "PART", 256)
    parts, others = trained(learned)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)
    for state, other in zip(states, others, strict=True):
        for name, x in state.items():
            assert torch.equal(x, other[name]), name


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_stay_as_they_are(name: str, backend: str) -> None:
    """A step may be given the user's own gradient, and must not write to it."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s)) for s in [(6, 5), (7,), (5, 6)]]
    optimizer = make(name, params, backend=backend, lr=0.5, weight_decay=0.1)
    for _ in range(2):
        grads = [torch.randn_like(p) for p in params]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step(loss=torch.ones(()))
        for p, g in zip(params, grads, strict=True):
            assert p.grad is not None and torch.equal(p.grad, g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_found(dtype: torch.dtype) -> None:
    big = torch.full((3, 7), float(torch.finfo(dtype).max), dtype=dtype)
    small = torch.ones(5, dtype=dtype)
    assert not some_not_finite(small) and not some_not_finite(big)
    assert not look([big, small, -big], INF).bad and not some_not_finite(big[:0])
    for bad in (NAN, INF, -INF):
        spoiled = big.clone()
        spoiled[1, 2] = bad
        assert some_not_finite(spoiled) and look([small, spoiled], INF).bad
