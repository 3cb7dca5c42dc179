"""State from outside: validated before anything is changed, matched by name, for a run
of another length."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch_common import (
    NAMES,
    loss_of,
    make,
    random_theta,
    small_model,
    train,
    values,
)

import lopax.torch as lt
from lopax._core.errors import ConfigError, StructureMismatch
from lopax._core.run import Run
from lopax.torch import UnsupportedParameter
from lopax.torch.batch import Rows
from lopax.torch.rule import Rule
from lopax.torch.theta import to_torch


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def trained(name: str, steps: int = 2, **options: Any) -> tuple[Any, Any]:
    model = small_model()
    optimizer = make(name, model.named_parameters(), **options)
    train(model, optimizer, range(steps))
    return model, optimizer


def snapshot(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def assert_same(a: Any, b: Any) -> None:
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, state in a["state"].items():
        for k, v in state.items():
            assert torch.equal(v, b["state"][key][k]), (key, k)


def half(saved: Any) -> None:
    for state in saved["state"].values():
        for k, v in state.items():
            state[k] = v.half() if v.is_floating_point() else v


def adamw(saved: Any) -> None:
    model = small_model()
    other = torch.optim.AdamW(model.named_parameters())
    loss_of(model, 0).backward()
    other.step()
    saved.update(copy.deepcopy(other.state_dict()))


def unused_adamw(saved: Any) -> None:
    saved.update(torch.optim.AdamW(small_model().named_parameters()).state_dict())


def last_state(change: Any) -> Any:
    def attack(saved: Any) -> None:
        state = saved["state"][3]
        name = next(k for k in state if not k.startswith("shared_"))
        change(state, name)

    return attack


def other_run(saved: Any) -> None:
    saved["state"][3]["shared_iteration"] = torch.tensor(40, dtype=torch.int32)


def group(**settings: Any) -> Any:
    return lambda saved: saved["param_groups"][0].update(settings)


BAD: dict[str, Any] = {
    "halved": half,
    "AdamW's": adamw,
    "AdamW's before its first step": unused_adamw,
    "one array missing": last_state(lambda s, k: s.pop(k)),
    "one array more": last_state(lambda s, k: s.update(extra=s[k])),
    "another size": last_state(lambda s, k: s.update({k: s[k].flatten()[1:]})),
    "a number": last_state(lambda s, k: s.update({k: 1.0})),
    "float64": last_state(lambda s, k: s.update({k: s[k].double()})),
    "not shared": last_state(lambda s, k: s.pop("shared_iteration")),
    "no dict": lambda saved: saved["state"].update({3: torch.ones(2)}),
    "another run's": other_run,
    "a bad layout": group(layout="jax"),
    "a negative lr": group(lr=-1.0),
    "a group less": lambda saved: saved["param_groups"].clear(),
    "a model's": lambda saved: (
        saved.clear(),
        saved.update(small_model().state_dict()),
    ),
    "a parameter less": lambda saved: saved["param_groups"][0]["params"].pop(),
}


@pytest.mark.parametrize("what", BAD)
def test_a_state_that_is_refused_changes_nothing(name, what):
    model, optimizer = trained(name)
    twin, other = copy.deepcopy((model, optimizer))
    saved = snapshot(optimizer)
    BAD[what](saved)
    before = snapshot(optimizer)
    with pytest.raises((StructureMismatch, ConfigError, ValueError)) as caught:
        optimizer.load_state_dict(saved)
    if "AdamW" in what:
        assert "torch.optim.Adam" in str(caught.value)
    assert_same(snapshot(optimizer), before)
    assert train(model, optimizer, range(2, 5)) == train(twin, other, range(2, 5))
    assert torch.equal(values(model), values(twin))


def test_what_is_loaded_shares_no_memory_and_is_contiguous(name):
    model, optimizer = trained(name)
    saved = snapshot(optimizer)
    for state in saved["state"].values():
        for k, v in state.items():
            axes = tuple(reversed(range(v.ndim)))
            state[k] = v.permute(axes).contiguous().permute(axes)
    before = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    assert all(v.is_contiguous() for s in optimizer.state.values() for v in s.values())
    train(model, optimizer, range(2, 4))
    assert_same(saved, before)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_parameters_are_matched_by_name(name, prefix):
    """Another order of parameters and groups, as a model built in another way has."""
    torch.manual_seed(0)
    names = [f"block.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    shapes = [(4, 4), (4,)] * 3
    start = {n: torch.randn(s) for n, s in zip(names, shapes, strict=True)}

    def build(order: Any, before: str = "") -> tuple[dict[str, Any], Any]:
        params = {n: torch.nn.Parameter(start[n].clone()) for n in names}
        groups = [
            {
                "params": [(before + n, params[n]) for n in group],
                "lr": 0.5 if group[0].endswith("bias") else 1.0,
            }
            for group in order
        ]
        return params, make(name, groups)

    def steps(params: Any, optimizer: Any, which: range) -> None:
        for step in which:
            for i, n in enumerate(names):
                params[n].grad = torch.cos(start[n] * (1 + i) + step)
            optimizer.step(loss=1.0 / (1 + step))

    weights, biases = names[::2], names[1::2]
    params, optimizer = build([weights, biases])
    steps(params, optimizer, range(3))
    saved = snapshot(optimizer)
    other, resumed = build([biases[::-1], weights[::-1]], prefix)
    for n in names:
        other[n].data.copy_(params[n].data)
    resumed.load_state_dict(saved)
    assert [g["lr"] for g in resumed.param_groups] == [0.5, 1.0]
    assert resumed.param_groups[0]["param_names"] == [prefix + n for n in biases[::-1]]
    steps(params, optimizer, range(3, 6))
    steps(other, resumed, range(3, 6))
    for n in names:  # kernels and stacks treat tensors in another order
        torch.testing.assert_close(other[n], params[n], rtol=1e-5, atol=1e-6)
    # Without names on both sides, and for names that changed, the order counts.
    params, _ = build([weights, biases])
    plain = make(name, [{"params": [params[n] for n in g]} for g in (weights, biases)])
    plain.load_state_dict(saved)
    renamed, again = build([weights, biases], "encoder.")
    again.load_state_dict(saved)
    for n, p in renamed.items():
        key = [*weights, *biases].index(n)
        for k, v in saved["state"][key].items():
            assert torch.equal(again.state[p][k], v)
            assert torch.equal(plain.state[params[n]][k], v)


def test_an_empty_tensor_has_an_empty_state(name):
    """Placeholders: tools that go through all parameters find what they look for."""
    model = small_model()
    empty = [torch.nn.Parameter(torch.zeros(s)) for s in ((0,), (0, 4), (3, 0))]
    every = [*model.parameters(), *empty]
    optimizer, twin = make(name, every), small_model()
    other = make(name, twin.parameters())
    for step in range(3):
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        for p in empty:
            p.grad = torch.zeros_like(p)
        optimizer.step(loss=loss)
    assert train(twin, other, range(3))
    assert torch.equal(values(model), values(twin))
    assert len(optimizer.state_dict()["state"]) == len(every)
    for p in empty:
        assert "shared_iteration" in optimizer.state[p]
    saved = snapshot(optimizer)
    optimizer.load_state_dict(saved)
    assert_same(snapshot(optimizer), saved)


def test_state_that_a_program_sets_itself_goes_on(name):
    """As ZeroRedundancyOptimizer does: a new optimizer, state by state."""
    model, optimizer = trained(name, 3)
    fresh = small_model(seed=1)
    fresh.load_state_dict(model.state_dict())
    resumed = make(name, fresh.named_parameters())
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        resumed.state[q] = copy.deepcopy(optimizer.state[p])
    expected = train(model, optimizer, range(3, 6))
    assert train(fresh, resumed, range(3, 6)) == expected
    assert int(resumed.info().iteration) == 6
    shared = [s["shared_iteration"] for s in resumed.state.values()]
    assert len({t.data_ptr() for t in shared}) == 1
    # One parameter alone takes its own arrays from elsewhere; the run goes on.
    weight = fresh[0].weight
    resumed.state[weight] = copy.deepcopy(optimizer.state[model[0].weight])
    resumed.state[weight]["shared_iteration"] += 100
    train(fresh, resumed, range(6, 7))
    assert int(resumed.info().iteration) == 7
    # What is no state of this kind is refused at the step.
    for q in fresh.parameters():
        resumed.state[q] = {"exp_avg": torch.zeros_like(q)}
    with pytest.raises(StructureMismatch, match="shared_iteration"):
        train(fresh, resumed, range(7, 8))


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("way", ["saved", "new", "later", None])
def test_a_run_of_another_length(name, way, backend):
    def build(steps: int, seed: int = 0, **options: Any) -> tuple[Any, Any]:
        model = small_model(seed)
        return model, make(name, model.parameters(), steps, backend=backend, **options)

    model, optimizer = build(20)
    train(model, optimizer, range(5))
    asked = way if way in ("saved", "new") else None
    other, longer = build(60, 1, on_resume=asked)
    other.load_state_dict(model.state_dict())
    follows = longer._rule.needs_horizon
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        longer.load_state_dict(snapshot(optimizer))
    warned = [str(w.message) for w in seen if "a run of 20 steps" in str(w.message)]
    assert len(warned) == len(seen) == (asked is None and follows)
    # In the name of the program's own line.
    assert all(w.category is lt.HorizonWarning for w in seen)
    assert all(w.filename == __file__ for w in seen)
    for told in ("set_num_steps(60)", 'on_resume="new"', "5 are done"):
        assert all(told in text for text in warned)
    if way == "later":
        longer.set_num_steps(60)
    held = int(next(iter(longer.state.values()))["shared_num_steps"])
    if follows:
        assert held == (60 if way in ("new", "later") else 20)
    # The same by hand: the optimizer that goes on is told the new length.
    if held == 60:
        optimizer.set_num_steps(60)
    assert train(other, longer, range(5, 9)) == train(model, optimizer, range(5, 9))
    assert torch.equal(values(other), values(model))
    with pytest.raises(ConfigError, match="on_resume"):
        build(20, on_resume="maybe")


def test_extending_a_fresh_state_gives_that_of_the_longer_run(name):
    model, optimizer = trained(name, 0, num_steps=20)
    poison = float("nan")
    loss_of(model, 0).backward()
    optimizer.step(loss=poison)  # makes the state
    optimizer.set_num_steps(70)
    other, longer = trained(name, 0, num_steps=70)
    loss_of(other, 0).backward()
    longer.step(loss=poison)
    if name in ("celo", "celo_adam", "velo", "celo2"):  # others step without a loss
        for a, b in zip(optimizer.state.values(), longer.state.values(), strict=True):
            for k in a:
                assert torch.equal(a[k], b[k]), k


def test_extending_agrees_with_jax():
    jax: Any = pytest.importorskip("jax")
    from lopax.architectures.described import XP
    from lopax.rules import loss_history

    short, long = jax.numpy.int32(100), jax.numpy.int32(4_000)
    history = loss_history.init(XP, short)
    celo = lt.RULES["celo"].rule_class()
    rule = Rule(celo, to_torch(celo, random_theta("celo")))
    ours = rule.init_shared(100)
    zero = torch.zeros(())
    for step, loss in enumerate((2.0, 1.5, 1.2, 1.0)):
        history = loss_history.update(XP, history, jax.numpy.float32(loss))
        count = torch.tensor(step, dtype=torch.int32)
        run = Run(torch.tensor(loss), zero, count, torch.tensor(100))
        ours = rule.advance(ours, run, Rows(0, None, {})).shared
    moved = loss_history.retime(XP, history, short, long)
    unlike = rule.retime(ours, 77, 50)  # not built for 77 steps
    assert all(torch.equal(ours[k], unlike[k]) for k in ours)
    ours = rule.retime(ours, 100, 4_000)
    for theirs, name in (
        ("means", "means"),
        ("decays", "decays"),
        ("minima", "minima"),
    ):
        torch.testing.assert_close(
            ours[f"loss_{name}"],
            torch.tensor(jax.device_get(getattr(moved, theirs))),
            rtol=1e-5,
            atol=0.0,
        )


def test_a_parameter_without_memory_is_refused():
    p = torch.nn.Parameter(torch.ones(3, 2, device="meta"))
    p.grad = torch.ones(3, 2, device="meta")
    with pytest.raises(UnsupportedParameter, match="meta"):
        make("celo", [p]).step(loss=1.0)
