"""The torch optimizer's state: saved, loaded, copied, kept from what is not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from torch_common import NAMES, loss_of, make, small_model, train, values

from lopax._core.errors import StructureMismatch


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize("poison", ["loss", "gradient", "infinite", "both"])
@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_step_that_is_not_finite_changes_nothing(name, poison, backend):
    model = small_model()
    optimizer = make(name, model.parameters(), backend=backend, weight_decay=0.1)
    train(model, optimizer, range(3))
    before, state = values(model), copy.deepcopy(optimizer.state_dict()["state"])
    loss = loss_of(model, 3)
    optimizer.zero_grad()
    loss.backward()
    if poison in ("gradient", "both"):
        model[2].weight.grad[0, 0] = float("nan")
    if poison == "infinite":
        model[2].weight.grad[0, 0] = float("-inf")
    bad = poison in ("loss", "both")
    optimizer.step(loss=loss * float("nan") if bad else loss)
    assert torch.equal(before, values(model))
    info = optimizer.info()
    assert (int(info.iteration), int(info.skipped)) == (4, 1)
    counters = ("shared_iteration", "shared_skipped")
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if key not in counters:
                assert torch.equal(value, state[index][key]), key
    train(model, optimizer, range(4, 6))
    assert torch.isfinite(values(model)).all()
    assert not torch.equal(before, values(model))


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_run_may_begin_with_a_step_that_is_not_finite(name, backend):
    model, clean = small_model(), small_model()
    optimizer = make(name, model.parameters(), backend=backend)
    other = make(name, clean.parameters(), backend=backend)
    loss_of(model, 0).backward()
    optimizer.step(loss=float("nan"))
    assert torch.equal(values(model), values(clean))
    first = train(model, optimizer, range(1))
    assert first == train(clean, other, range(1))
    # Only the fraction of the run that is done differs, on which some schedules fall.
    moved = (values(clean) - values(small_model())).norm()
    tolerance = 0.1 if name in ("learned_muon", "scheduled_adam") else 1e-3
    assert (values(model) - values(clean)).norm() <= tolerance * moved + 1e-5


def test_state_dict_has_torch_s_two_entries_and_loads_twice(name):
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    frozen, weights = copy.deepcopy(saved), copy.deepcopy(model.state_dict())
    train(model, optimizer, range(3, 6))
    expected = values(model)
    resumed = optimizer
    for _ in range(2):
        again = small_model(seed=1)
        again.load_state_dict(weights)
        # Another theta, to be told from the loaded state, would change the run.
        resumed = make(name, again.parameters(), num_steps=50)
        resumed.load_state_dict(copy.deepcopy(frozen))
        resumed.load_state_dict(frozen)
        train(again, resumed, range(3, 6))
        assert torch.equal(values(again), expected)
        assert int(resumed.info().iteration) == 6
    shared = [s["shared_iteration"] for s in resumed.state.values()]
    assert len({t.data_ptr() for t in shared}) == 1
    assert int(frozen["state"][0]["shared_iteration"]) == 3


def test_state_dict_survives_torch_save(name, tmp_path):
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(2))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = make(name, small_model().parameters())
    other.load_state_dict(saved)
    assert int(other.state_dict()["state"][0]["shared_iteration"]) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_state_stays_float32_whatever_the_parameters(name, dtype):
    model = small_model().to(dtype)
    reference = small_model()
    optimizer = make(name, model.parameters())
    other = make(name, reference.parameters())
    for step in range(4):
        loss = loss_of(reference, step)
        other.zero_grad()
        loss.backward()
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.grad = q.grad.to(dtype)
        optimizer.step(loss=loss)
        other.step(loss=loss)
        if step == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {p.dtype for p in model.parameters()} == {dtype}
    floats = {
        v.dtype
        for s in optimizer.state.values()
        for v in s.values()
        if v.is_floating_point()
    }
    assert floats == {torch.float32}
    tolerance = {torch.float64: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    error = (values(model) - values(reference)).norm() / values(reference).norm()
    assert error < tolerance


def test_loads_a_state_saved_with_other_parameter_dtypes(name):
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(3))
    half = make(name, small_model().bfloat16().parameters())
    half.load_state_dict(optimizer.state_dict())
    for a, b in zip(half.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in b)


def test_a_state_that_does_not_fit_is_refused(name):
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(1))
    other_name = "celo_adam" if name in ("celo", "celo2_base") else "celo"
    other = make(other_name, small_model().parameters())
    with pytest.raises(StructureMismatch, match="expected"):
        other.load_state_dict(optimizer.state_dict())
    wide = torch.nn.Sequential(
        torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)
    )
    with pytest.raises(StructureMismatch, match="parameter 0"):
        make(name, wide.parameters()).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="size of optimizer's group"):
        make(name, [torch.nn.Parameter(torch.ones(1))]).load_state_dict(
            optimizer.state_dict()
        )


def test_copies_are_independent_and_complete(name):
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(2))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    a = train(model, optimizer, range(2, 5))
    b = train(twin, twin_optimizer, range(2, 5))
    assert a == b
    assert torch.equal(values(model), values(twin))


def test_step_hooks_and_state_dict_hooks_run(name):
    model = small_model()
    optimizer = make(name, model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda *a: seen.append(("pre", a[2]["loss"])))
    optimizer.register_step_post_hook(lambda *a: seen.append(("post", a[2]["loss"])))
    optimizer.register_state_dict_post_hook(lambda *a: seen.append("save"))

    def dtypes(loaded):
        states = [v.items() for v in loaded.state.values()]
        kinds = {x.dtype for v in states for k, x in v if not k.startswith("shared_")}
        seen.append(("load", kinds))

    optimizer.register_load_state_dict_post_hook(dtypes)
    model.bfloat16()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(loss=0.5)
    optimizer.load_state_dict(optimizer.state_dict())
    # A user's hook sees the restored state, not torch's cast of it.
    assert seen == [("pre", 0.5), ("post", 0.5), "save", ("load", {torch.float32})]


def test_moving_the_model_moves_the_state(name):
    """Stands in for a second device: the state was left in another place."""
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(2))
    weight = model[0].weight
    state = optimizer.state[weight]
    from lopax.torch.state import follow

    elsewhere = {k: v.to("meta") for k, v in state.items()}
    follow(elsewhere, weight.to("meta"))
    assert {v.device.type for v in elsewhere.values()} == {"meta"}
    follow(state, weight)
    assert {v.device for v in state.values()} == {weight.device}


@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_memory_formats_and_strides_do_not_matter(name, backend):
    torch.manual_seed(0)
    weight, grads = torch.randn(6, 4, 3, 3), torch.randn(3, 6, 4, 3, 3)
    matrix, matrix_grads = torch.randn(6, 9), torch.randn(3, 6, 9)
    results = []
    for strided in (False, True):
        if strided:
            a = torch.nn.Parameter(weight.to(memory_format=torch.channels_last))
            b = torch.nn.Parameter(matrix.T.contiguous().T)
            assert not a.is_contiguous()
            assert not b.is_contiguous()
        else:
            a, b = (
                torch.nn.Parameter(weight.clone()),
                torch.nn.Parameter(matrix.clone()),
            )
        optimizer = make(name, [a, b], backend=backend, weight_decay=0.1)
        for g, h in zip(grads, matrix_grads, strict=True):
            a.grad = g.to(memory_format=torch.channels_last) if strided else g.clone()
            b.grad = h.clone()
            optimizer.step(loss=1.0)
        results.append((a.detach(), b.detach()))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)
