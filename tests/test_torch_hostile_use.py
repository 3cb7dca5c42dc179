"""What a program does to an optimizer between two steps: a right step, or an error that
says what is wrong."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch_common import FUSED_CPU, NAMES, make, needs_compiler

import lopax.torch as lt
from lopax._core.errors import ConfigError, StructureMismatch
from lopax.torch import UnsupportedParameter

pytestmark = pytest.mark.filterwarnings("ignore::lopax.torch.LopaxWarning")


@pytest.fixture(params=NAMES)
def name(request: Any) -> str:
    return request.param


def two(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """A matrix and a vector."""
    start = torch.linspace(-1.0, 2.0, 20).reshape(5, 4), torch.ones(3)
    return [torch.nn.Parameter(x.to(dtype)) for x in start]


def gradient(p: torch.Tensor, step: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, p.numel()).reshape(p.shape).roll(step).to(p.dtype)


@pytest.mark.parametrize("name", FUSED_CPU)
def test_whatever_has_a_gradient_is_stepped(name: str) -> None:
    """Gradients come and go, by tensor and by role; kernels do as the plain rule."""
    needs_compiler()
    found = []
    for backend in ("plain", "fused"):
        params = two()
        optimizer = make(name, params, backend=backend)
        patterns = itertools.permutations([(1, 1), (1, 0), (0, 1), (0, 0)])
        for step, given in enumerate(itertools.chain(*patterns)):
            before = [p.detach().clone() for p in params]
            for p, has in zip(params, given, strict=True):
                p.grad = gradient(p, step) if has else None
            optimizer.step(loss=1.0 / (1 + step))
            if step < 20:  # later the schedule of some is at its end
                moved = [
                    bool((p != b).any()) for p, b in zip(params, before, strict=True)
                ]
                assert moved == [bool(x) for x in given]
        found.append(torch.cat([p.detach().flatten() for p in params]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def stepped(optimizer: Any, loss: Any = 1.0) -> None:
    for group in optimizer.param_groups:
        for step, p in enumerate(group["params"]):
            p.grad = gradient(p, step)
    optimizer.step(loss=loss)


WRITTEN = [
    *itertools.product(
        ("lr", "weight_decay"),
        ("0.1", None, -1.0, math.nan, math.inf, torch.tensor([0.5, 0.5])),
    ),
    ("layout", "bogus"),
]


@pytest.mark.parametrize(("setting", "value"), WRITTEN, ids=str)
@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_what_a_program_writes_into_a_group_is_checked(
    setting: str, value: Any, backend: str
) -> None:
    for name in ("celo", "learned_muon"):
        params = two()
        optimizer = make(name, params, backend=backend)
        stepped(optimizer)
        before = [p.detach().clone() for p in params]
        optimizer.param_groups[0][setting] = value
        with pytest.raises(ConfigError, match=setting):
            stepped(optimizer)
        assert all(map(torch.equal, params, before))
        assert int(optimizer.info().iteration) == 1
        optimizer.param_groups[0][setting] = optimizer.defaults[setting]
        stepped(optimizer)


def test_a_schedule_may_end_a_rounding_error_below_zero(name: str) -> None:
    params = two()
    optimizer = make(name, params)
    for lr in (1e-3, -1e-18, torch.tensor([0.5])):
        optimizer.param_groups[0]["lr"] = lr
        stepped(optimizer)
        saved = optimizer.state_dict()
        make(name, two()).load_state_dict(saved)


def test_lists_of_parameters_and_names_that_do_not_fit_are_refused() -> None:
    params = two()
    optimizer = make("celo", [("a", params[0]), ("b", params[1])])
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(StructureMismatch, match="3 parameters and 2 names"):
        stepped(optimizer)
    optimizer.param_groups[0]["param_names"].append("c")
    stepped(optimizer)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [1, 2],
        {},
        {"state": None, "param_groups": []},
        {"state": {}, "param_groups": None},
        {"state": {}, "param_groups": [None]},
        {"state": {}, "param_groups": [{"lr": 1.0}]},
    ],
    ids=str,
)
def test_what_is_no_state_dict_is_refused(given: Any) -> None:
    optimizer = make("celo", two())
    with pytest.raises(StructureMismatch, match="state dict"):
        optimizer.load_state_dict(given)
    stepped(optimizer)


def test_a_loss_is_one_number_in_whatever_form(name: str) -> None:
    for loss in (2, np.float64(2), np.array(2.0), np.array([[2.0]]), torch.ones(1, 1)):
        stepped(make(name, two()), loss)
    for loss in ("2.0", b"2", np.ones(2), np.array("2"), [2.0], {"loss": 2.0}, 2j):
        with pytest.raises(ConfigError, match="the loss is"):
            stepped(make(name, two()), loss)


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_dtypes_of_parameters(name: str, backend: str) -> None:
    """Those torch can add in; the others are refused before anything is moved."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        params = two(dtype)
        stepped(make(name, params, backend=backend))
        assert all(p.isfinite().all() and p.dtype == dtype for p in params)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64):
        params = [*two(), torch.nn.Parameter(torch.ones(3).to(dtype))]
        before = [p.detach().clone() for p in params]
        optimizer = make(name, params, backend=backend)
        for p in params:
            p.grad = torch.ones_like(p, dtype=torch.float32).to(p.dtype)
        with pytest.raises(UnsupportedParameter, match=str(dtype)):
            optimizer.step(loss=1.0)
        assert torch.equal(params[0], before[0])


def warned(steps: int, name: str, give: Any, params: Any = None) -> list[str]:
    """What is said in so many steps with these gradients."""
    params = two() if params is None else params
    optimizer = make(name, params)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for step in range(steps):
            for p in params:
                p.grad = give(p, step)
            optimizer.step(loss=1.0)
    return [str(w.message) for w in found if w.category is lt.SkippedWarning]


def test_an_optimizer_of_other_parameters_than_the_model_s_says_so(name: str) -> None:
    """As after `load_state_dict(assign=True)`: nothing has a gradient."""
    assert not warned(9, name, lambda *_: None)
    (text,) = warned(200, name, lambda *_: None)
    assert "no gradient" in text and "zero_grad()" in text
    # Now and then is no reason, as in a game of two.
    assert not warned(30, name, lambda p, i: gradient(p, i) if i % 9 == 8 else None)


def test_gradients_that_are_zero_from_the_start_are_said(name: str) -> None:
    """Of all matrices; layers of zeros in a row leave only the last bias a gradient."""

    def zero(p: Any, step: int, matrices_only: bool = True) -> Any:
        some = p.ndim < 2 and matrices_only
        return gradient(p, step) if some else torch.zeros_like(p)

    (text,) = warned(40, name, zero)
    assert "every weight matrix was exactly zero" in text
    (text,) = warned(40, name, lambda p, i: zero(p, i, False), [two()[1]])
    assert "every parameter was exactly zero" in text
    assert not warned(9, name, zero)
    assert not warned(40, name, lambda p, i: gradient(p, i) * (i == 5 or i > 30))
    assert not warned(40, name, lambda p, i: zero(p, i), [two()[1]])
