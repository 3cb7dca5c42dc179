"""What single rules do in torch beyond numbers: roles, names, tensors that hear others,
weights that are not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch_common import (
    NAMES,
    SETTINGS,
    make,
    random_theta,
    small_model,
    values,
)

import lopax.torch as lt
from lopax._core.errors import ConfigError
from lopax.pretrained import list_weights
from lopax.torch import pieces
from lopax.torch.rule import Rule


def celo2(params: Any, **options: Any) -> Any:
    """With the default routes, which look at names."""
    theta = random_theta("celo2")
    return lt.Celo2(params, theta=theta, hidden=3, **options)


def role(optimizer: Any, param: Any) -> str:
    """ "adam" or "learned", by the state a step left."""
    return "adam" if "momentum" in optimizer.state[param] else "learned"


def language_model() -> Any:
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(11, 4), "head": torch.nn.Linear(4, 11)}
    )


def give_gradients(params: Any) -> None:
    for i, p in enumerate(params):
        p.grad = torch.cos(torch.arange(p.numel()) + 1.0 + i).reshape(p.shape)


def test_names_decide_the_role() -> None:
    model = language_model()
    optimizer = celo2(model.named_parameters())
    give_gradients(model.parameters())
    optimizer.step()
    assert role(optimizer, model["embed"].weight) == "adam"
    assert role(optimizer, model["head"].weight) == "learned"
    assert role(optimizer, model["head"].bias) == "adam"


def test_without_names_the_groups_must_say_it() -> None:
    model = language_model()
    with pytest.raises(ConfigError, match="named_parameters"):
        celo2(model.parameters())
    embed, weight, bias = model.parameters()
    groups = [
        {"params": [embed], "role": "adam"},
        {"params": [weight], "role": "orthogonal"},
        {"params": [bias]},  # vectors are told by their rank
    ]
    optimizer = celo2(groups)
    give_gradients(model.parameters())
    optimizer.step()
    found = [role(optimizer, p) for p in (embed, weight, bias)]
    assert found == ["adam", "learned", "adam"]

    named = language_model()
    other = celo2(named.named_parameters())
    give_gradients(named.parameters())
    other.step()
    assert torch.equal(values(model), values(named))
    # The state goes from one to the other: roles are settings, not state.
    again = celo2([dict(g, params=list(g["params"])) for g in groups])
    again.load_state_dict(optimizer.state_dict())
    assert [g["role"] for g in again.param_groups] == ["adam", "orthogonal", None]


def test_roles_are_checked() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ConfigError, match="'orthogonal', 'learned', 'adam'"):
        celo2([{"params": [weight], "role": "muon"}])
    with pytest.raises(ConfigError, match="role 'muon'"):
        celo2([("w", weight)], routes=(lt.Route(role="muon"),))
    with pytest.raises(ConfigError, match="regular expression"):
        lt.Route(role="adam", name="(")
    # Rules that treat all tensors alike have no roles to ask for.
    make("celo", [{"params": [weight], "role": "adam"}])


def test_routes_by_predicate_and_rank() -> None:
    routes = (
        lt.Route(role="adam", predicate=lambda name, shape: shape[0] > 10, min_rank=2),
        lt.Route(role="learned", name="^head/bias$"),
    )
    model = language_model()
    optimizer = celo2(model.named_parameters(), routes=routes)
    give_gradients(model.parameters())
    optimizer.step()
    found = [role(optimizer, p) for p in model.parameters()]
    assert found == ["adam", "adam", "learned"]


@pytest.mark.parametrize("correction", [False, True])
def test_the_role_adam_is_adam(correction: bool) -> None:
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    settings: Any = {"bias_correction": correction, "adam_mult": 3.0}
    optimizer = celo2([("b", param)], **settings)
    p, m, v = param.detach().clone(), torch.zeros(3), torch.zeros(3)
    for t in range(1, 6):
        g = torch.sin(torch.arange(3.0) + t)
        param.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        c1, c2 = (1 - 0.9**t, 1 - 0.95**t) if correction else (1.0, 1.0)
        p -= 3e-3 * (m / c1) * torch.rsqrt(v / c2 + 1e-8)
        torch.testing.assert_close(param.detach(), p)


@pytest.mark.filterwarnings("ignore::lopax.torch.HorizonWarning")  # on purpose
@pytest.mark.parametrize("kind", ["adam", "learned"])
def test_celo2_s_schedule(kind: str) -> None:
    """Beside constant steps, those of a schedule are half a cosine's."""
    moved = []
    for schedule in ("constant", "cosine"):
        param = torch.nn.Parameter(torch.zeros(4, 3))
        groups = [{"params": [param], "role": kind}]
        optimizer = celo2(groups, schedule=schedule, num_steps=4)
        sizes = []
        for step in range(6):
            param.data.zero_()
            param.grad = torch.cos(torch.arange(12.0) + step).reshape(4, 3)
            optimizer.step()
            sizes.append(float(param.detach().norm()))
        moved.append(np.array(sizes))
    expected = [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0, 0.0]
    np.testing.assert_allclose(moved[1] / moved[0], expected, atol=1e-6)


def test_celo2_asks_for_the_horizon_its_schedule_needs() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    celo2([("w", weight)])
    with pytest.raises(lt.HorizonNotGiven, match="num_steps"):
        celo2([("w", weight)], schedule="cosine")


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_celo2_flattens_convolutions(layout: str) -> None:
    """A flat kernel moves as the matrix it is seen as, in any memory format."""
    torch.manual_seed(0)
    start, grads = torch.randn(6, 4, 3, 3), torch.randn(3, 6, 4, 3, 3)
    flat = (6, 36) if layout == "out_in" else (72, 3)
    ends = []
    for shape, form in (
        (start.shape, torch.contiguous_format),
        (start.shape, torch.channels_last),
        (flat, torch.contiguous_format),
    ):
        first = start.reshape(shape).contiguous(memory_format=form)
        param = torch.nn.Parameter(first.clone(memory_format=torch.preserve_format))
        optimizer = celo2([("w", param)], layout=layout, convolutions="flat")
        for grad in grads:
            param.grad = grad.reshape(shape).contiguous(memory_format=form)
            optimizer.step()
        assert optimizer.state[param]["second"].shape == flat
        ends.append(param.detach().reshape(-1))
    assert torch.equal(ends[0], ends[2])
    torch.testing.assert_close(ends[1], ends[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 40, 3)])
def test_steps_of_matrices_are_nearly_orthogonal_and_of_one_size(shape: Any) -> None:
    torch.manual_seed(0)
    ratios = {}
    for kind in ("orthogonal", "learned"):
        param = torch.nn.Parameter(torch.zeros(shape))
        optimizer = celo2([{"params": [param], "role": kind}], lr=2.0)
        before = param.detach()
        for _ in range(3):
            before = param.detach().clone()
            param.grad = torch.randn(shape)
            optimizer.step()
        step = (param.detach() - before).reshape(*shape[:2], -1).movedim(-1, 0)
        sizes = step.square().mean((1, 2)).sqrt()
        torch.testing.assert_close(
            sizes, torch.full_like(sizes, 2e-3), rtol=1e-3, atol=0
        )
        singular = torch.linalg.svdvals(step)
        ratios[kind] = float((singular[:, 0] / singular[:, -1]).max())
    assert ratios["orthogonal"] < 2.5 < ratios["learned"]


def velo_step(present: int, spread: float = 1.0, **settings: Any) -> list[np.ndarray]:
    """Two steps of VeLO on `present` of two tensors: how the first one moved."""
    torch.manual_seed(0)
    first = spread * torch.randn(3, 4)
    params = [torch.nn.Parameter(first), torch.nn.Parameter(torch.ones(50))]
    optimizer = make("velo", params[:present], **settings)
    moved = []
    for step in range(2):
        before = params[0].detach().clone()
        give_gradients(params)
        optimizer.step(loss=2.0 - step)
        moved.append((params[0].detach() - before).numpy())
    return moved


def test_velo_hears_other_tensors_and_carries_its_lstm() -> None:
    together, alone, frozen = velo_step(2), velo_step(1), velo_step(2, frozen_lstm=True)
    size = np.abs(together).max()
    assert np.abs(together[0] - alone[0]).max() > 1e-4 * size
    np.testing.assert_array_equal(together[0], frozen[0])
    assert np.abs(together[1] - frozen[1]).max() > 1e-4 * size


def test_velo_without_and_with_a_clipped_norm_factor() -> None:
    torch.manual_seed(0)
    size = 0.1 * float(torch.randn(3, 4).square().mean().sqrt())
    free = velo_step(2, 0.1, norm_factor="none")[0]
    published = velo_step(2, 0.1)[0]
    # Differences of parameters around 0.1: to their rounding.
    np.testing.assert_allclose(size * free, published, atol=3e-8)
    assert np.abs(published).min() > 1e-6
    clipped = velo_step(2, 0.1, norm_factor="clipped", norm_limit=size / 2)[0]
    np.testing.assert_allclose(2.0 * clipped, published, atol=6e-8)
    loose = velo_step(2, 0.1, norm_factor="clipped", norm_limit=2.0 * size)[0]
    np.testing.assert_allclose(loose, published, atol=3e-8)
    with pytest.raises(ConfigError, match="norm_factor = 'clip'"):
        velo_step(1, norm_factor="clip")
    with pytest.raises(ConfigError, match="norm_limit = 0"):
        velo_step(1, norm_factor="clipped", norm_limit=0.0)


def test_velo_s_lstm_starts_where_theta_says() -> None:
    theta = random_theta("velo")
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = make("velo", [param], theta=theta, frozen_lstm=True)
    param.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    state = optimizer.state[param]
    np.testing.assert_array_equal(state["lstm_hidden"], theta["initial/hidden"])
    np.testing.assert_array_equal(state["lstm_cell"], theta["initial/cell"])


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("name", NAMES)
def test_working_in_pieces_changes_nothing(name, layout, monkeypatch) -> None:
    """A large tensor is stepped a piece at a time, whatever its shape and layout."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(30, 7), (9, 5, 4), (12, 6, 3, 3), (3, 3, 6, 12), (90,)]
    start = [torch.randn(s, generator=generator) for s in shapes]
    grads = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(3)]
    ends = []
    for part in (1 << 15, 50):
        monkeypatch.setattr(pieces, "CPU_PART", part)
        params = [torch.nn.Parameter(x.clone()) for x in start]
        optimizer = make(name, params, layout=layout, backend="plain")
        for step in range(3):
            for p, g in zip(params, grads[step], strict=True):
                p.grad = g.clone()
            optimizer.step(loss=3.0 - step)
        ends.append([p.detach() for p in params])
    for a, b, first in zip(*ends, start, strict=True):
        error = (a - b).norm() / (a - first).norm()
        assert error < (1e-3 if name == "celo2" else 1e-4), (a.shape, error)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_bundled_are_asked_for(name: str) -> None:
    named = list(small_model().named_parameters())
    if name in list_weights():
        assert lt.optimizer(name, named, num_steps=5).param_groups
        return
    with pytest.raises(lt.WeightsNotGiven, match="no bundled weights") as caught:
        lt.optimizer(name, named, num_steps=5)
    for way in ("weights=", "theta="):
        assert way in str(caught.value)
    options = {"theta": random_theta(name), **SETTINGS.get(name, {})}
    lt.optimizer(name, named, num_steps=5, **options)


@pytest.mark.filterwarnings("ignore:step 3 of a run of 2")
@pytest.mark.parametrize("name", NAMES)
def test_time_stands_still_past_the_horizon(name, monkeypatch) -> None:
    """What rules are told of the run; most are not trained beyond its end."""
    told: list[Any] = []
    advance = Rule.advance

    def noted(self: Any, shared: Any, run: Any, *rest: Any) -> Any:
        told.append((float(run.fraction), int(run.updates), int(run.num_steps)))
        return advance(self, shared, run, *rest)

    monkeypatch.setattr(Rule, "advance", noted)
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = make(name, [param], num_steps=2)
    for _ in range(4):
        param.grad = torch.ones(3)
        optimizer.step(loss=1.0)
    assert told == [(0.0, 0, 2), (0.5, 1, 2), (1.0, 2, 2), (1.0, 3, 2)]
