"""The torch optimizer behaves as torch, its schedulers and its users expect."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from shared_files import shared
from torch_common import (
    NAMES,
    NEEDS_LOSS,
    batch,
    loss_of,
    make,
    random_theta,
    small_model,
    train,
    values,
)

import lopax.torch as lt
from lopax._core.errors import ConfigError, LopaxError, StructureMismatch, UnknownName
from lopax.torch import finite
from lopax.torch.theta import to_torch

ALWAYS = {n for n in NAMES if lt.RULES[n].rule_class.needs_horizon is True}
NEEDS_HORIZON = ALWAYS | {"celo2"}  # with the tests' settings


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_the_loss_can_be_given_in_three_ways(name):
    results = []
    for way in ("argument", "closure", "observe"):
        model = small_model()
        optimizer = make(name, model.parameters())
        for step in range(4):
            loss = loss_of(model, step)
            optimizer.zero_grad()
            if way == "closure":

                def closure(model=model, step=step, optimizer=optimizer):
                    optimizer.zero_grad()
                    loss = loss_of(model, step)
                    loss.backward()
                    return loss

                returned = optimizer.step(closure)
                torch.testing.assert_close(returned, loss)
                continue
            loss.backward()
            if way == "observe":
                optimizer.observe(loss)
                assert optimizer.step() is None
            else:
                assert optimizer.step(loss=loss) is loss
        results.append(values(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], values(small_model()))


@pytest.mark.parametrize("name", NEEDS_LOSS)
def test_without_the_loss_one_error_names_all_ways(name):
    model = small_model()
    optimizer = make(name, model.parameters())
    loss_of(model, 0).backward()
    with pytest.raises(lt.LossNotGiven) as caught:
        optimizer.step()
    for way in ("step(loss=loss)", "observe(loss)", "step(closure)"):
        assert way in str(caught.value)
    with pytest.raises(ConfigError, match="not both"):
        optimizer.step(lambda: 1.0, loss=1.0)
    with pytest.raises(lt.LossNotGiven):  # a closure that forgets to return it
        optimizer.step(lambda: None)
    with pytest.raises(ConfigError, match=r"shape \(16,\)"):
        optimizer.step(loss=torch.ones(16))
    assert torch.equal(values(model), values(small_model()))


@pytest.mark.parametrize("name", sorted({*NAMES} - {*NEEDS_LOSS} - ALWAYS))
def test_rules_that_do_not_look_at_the_loss_need_neither_it_nor_a_horizon(name):
    results = []
    for given in (None, 3.0):
        model = small_model()
        settings = {"schedule": "constant"} if name == "celo2" else {}
        optimizer = make(name, model.parameters(), num_steps=None, **settings)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step(loss=given)
        results.append(values(model))
    assert torch.equal(*results)
    assert not torch.equal(results[0], values(small_model()))


def test_losses_of_accumulated_micro_batches():
    history = {}
    for kind in ("mean", "sum", "whole", "last"):
        model = small_model()
        optimizer = make("celo", model.parameters(), num_steps=10)
        for step in range(5):
            parts = torch.tensor([2.0, 8.0]) / (1 + step)
            loss_of(model, step).backward()
            for part in parts:
                if kind == "mean":
                    optimizer.observe(part)
                if kind == "sum":
                    optimizer.observe(part / 2, reduce="sum")
            given = {"whole": parts.mean(), "last": parts[-1]}.get(kind)
            optimizer.step(loss=given)
            optimizer.zero_grad()
        state = optimizer.state[model[0].weight]
        history[kind] = state["shared_loss_means"]
    assert torch.equal(history["mean"], history["whole"])
    assert torch.equal(history["sum"], history["whole"])
    assert not torch.equal(history["last"], history["whole"])
    with pytest.raises(ConfigError, match="'mean', 'sum'"):
        optimizer.observe(1.0, reduce="max")


def test_lr_multiplies_the_update_and_schedulers_drive_it(name):
    start = values(small_model())
    moved = {}
    for lr in (1.0, 0.25, torch.tensor(0.25)):
        model = small_model()
        optimizer = make(name, model.parameters(), lr=lr)
        train(model, optimizer, range(1))
        moved[str(lr)] = values(model) - start
    torch.testing.assert_close(moved["0.25"], 0.25 * moved["1.0"], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved["0.25"], moved["tensor(0.2500)"])
    model = small_model()
    optimizer = make(name, model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    seen = []
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [0.5, 0.25, 0.125]


def test_weight_decay_follows_the_rules_own_scale(name):
    model, plain = small_model(), small_model()
    decayed = make(name, model.parameters(), weight_decay=0.5, lr=2.0)
    other = make(name, plain.parameters(), lr=2.0)
    start = values(model)
    train(model, decayed, range(1))
    train(plain, other, range(1))
    rate = 2.0 * 0.5 * decayed.info().step_scale
    torch.testing.assert_close(
        values(model) - values(plain), -rate * start, rtol=1e-2, atol=1e-7
    )


def test_parameter_groups_have_their_own_settings(name):
    model = small_model()
    first, last = model[0], model[2]
    optimizer = make(
        name,
        [
            {"params": first.parameters()},
            {"params": last.parameters(), "lr": 0.0, "weight_decay": 0.1},
        ],
    )
    before = [p.detach().clone() for p in last.parameters()]
    train(model, optimizer, range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(before, last.parameters(), strict=True)
    )
    assert not torch.equal(first.weight, small_model()[0].weight)


def test_frozen_missing_and_late_parameters(name):
    model = small_model()
    model[0].bias.requires_grad_(False)
    optimizer = make(name, model[0].parameters())
    train(model, optimizer, range(3))
    assert model[0].bias not in optimizer.state
    assert torch.equal(model[0].bias, small_model()[0].bias)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.5})
    late = model[2].weight.detach().clone()
    train(model, optimizer, range(3, 6))
    assert not torch.equal(late, model[2].weight)
    assert int(optimizer.info().iteration) == 6
    # A parameter without a gradient in this step keeps value and state.
    kept = copy.deepcopy(optimizer.state[late_param := model[2].weight])
    value = late_param.detach().clone()
    loss = loss_of(model, 6)
    optimizer.zero_grad()
    loss.backward()
    late_param.grad = None
    optimizer.step(loss=loss)
    assert torch.equal(value, late_param)
    own = [k for k in kept if not k.startswith("shared_")]
    assert own
    assert all(torch.equal(kept[k], optimizer.state[late_param][k]) for k in own)
    # No gradients at all: nothing happens, as with any torch optimizer.
    optimizer.zero_grad()
    optimizer.step(loss=loss)
    assert int(optimizer.info().iteration) == 7


def test_a_late_parameter_is_bias_corrected_by_its_own_age():
    old, young = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = make("celo_adam", [old])
    for _ in range(20):
        old.grad = torch.ones(3)
        optimizer.step(loss=1.0)
    optimizer.add_param_group({"params": [young]})
    old.grad, young.grad = torch.ones(3), torch.ones(3)
    optimizer.step(loss=1.0)
    step = 1.0 - young.detach()
    torch.testing.assert_close(step, optimizer.info().step_scale.expand(3))


def test_grad_scaler(name):
    model, reference = small_model(), small_model()
    optimizer = make(name, model.parameters())
    other = make(name, reference.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=100)
    for step in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x, y = batch(step)
            loss = torch.nn.functional.mse_loss(model(x).float(), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step == 2:  # the scaler skips the step, and no state is touched
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer, loss=loss)
        scaler.update()
        if step != 2:
            train(reference, other, range(step, step + 1))
    info = optimizer.info()
    assert (int(info.iteration), int(info.skipped)) == (3, 0)
    assert (values(model) - values(reference)).norm() < 0.02 * values(reference).norm()


def test_autocast_does_not_reach_the_rule(name):
    runs = []
    for enabled in (False, True):
        model = small_model()
        optimizer = make(name, model.parameters())
        for step in range(3):
            loss = loss_of(model, step)
            optimizer.zero_grad()
            loss.backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                optimizer.step(loss=loss)
        runs.append(values(model))
    assert torch.equal(*runs)


def test_the_step_never_waits_for_the_device(name, monkeypatch):
    """Plain steps read no tensor back: `.item()`, `bool()` and `float()` raise. On a
    CPU they may, where it saves work; here it stands for a device that cannot be asked.
    """
    monkeypatch.setattr(finite, "can_ask", lambda x: False)
    model = small_model()
    optimizer = make(name, model.parameters(), backend="plain")
    train(model, optimizer, range(1))
    loss = loss_of(model, 1)
    optimizer.zero_grad()
    loss.backward()

    def refuse(self, *args):
        raise AssertionError("the step reads a tensor back to the host")

    for method in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    optimizer.step(loss=loss)


def test_bad_settings_are_refused(name, monkeypatch):
    params = [torch.nn.Parameter(torch.ones(2))]
    theta = random_theta(name)
    if name in NEEDS_HORIZON:
        with pytest.raises(lt.HorizonNotGiven, match="num_steps=2_000"):
            make(name, params, num_steps=None)
    for bad in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="num_steps"):
            make(name, params, num_steps=bad)
    for settings in (
        {"lr": -1.0},
        {"weight_decay": -0.1},
        {"layout": "jax"},
        {"backend": "triton"},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            make(name, params, **settings)
    with pytest.raises(UnknownName, match=r"unknown setting .*'no_such_setting'"):
        make(name, params, no_such_setting=3.0)
    if "step_mult" in {
        f.name for f in dataclasses.fields(lt.RULES[name].rule_class.config_class)
    }:
        with pytest.raises(UnknownName, match="did you mean 'step_mult'"):
            make(name, params, step_mul=3.0)
    with pytest.raises(UnknownName, match="celo"):
        lt.optimizer("cello", params, num_steps=3)
    with pytest.raises(ConfigError, match="not both"):
        make(name, params, weights="x")
    path = next(iter(theta))
    theta.pop(path)
    with pytest.raises(StructureMismatch, match=path):
        make(name, params, theta=theta)
    with pytest.raises(ConfigError, match="before the first step"):
        make(name, params).info()
    monkeypatch.setenv("CC", "/nonexistent/compiler")
    monkeypatch.setenv("PATH", "")
    optimizer = make(name, params, backend="fused")
    params[0].grad = torch.ones(2)
    with pytest.raises(lt.BackendUnavailable, match="plain"):
        optimizer.step(loss=1.0)
    make(name, params, backend="auto").step(loss=1.0)


def test_gradients_and_parameters_it_cannot_treat_are_refused(name):
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = make(name, embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(lt.UnsupportedParameter, match="sparse=False"):
        optimizer.step(loss=1.0)
    spectrum = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    spectrum.grad = torch.ones_like(spectrum)
    with pytest.raises(lt.UnsupportedParameter, match="view_as_real"):
        make(name, [spectrum]).step(loss=1.0)
    flat: Any = torch.nn.Parameter(torch.ones(3))
    flat.grad = torch.ones(3)
    flat._fsdp_flattened = True
    with pytest.raises(lt.UnsupportedParameter, match="fully_shard"):
        make(name, [flat]).step(loss=1.0)
    assert issubclass(lt.UnsupportedParameter, LopaxError)


@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_nested_theta_and_published_files_give_the_same(name):
    published = shared("weights", name, "theta.state")
    model, other = small_model(), small_model()
    from lopax.pretrained import read_weights

    arrays = read_weights(published).arrays
    a = lt.optimizer(name, model.parameters(), num_steps=20, weights=published)
    theta = to_torch(lt.RULES[name].rule_class(), arrays)
    nested: dict = {}
    for path, value in theta.items():
        if "/" in path and path != "scheduler/centres":
            *folders, leaf = path.split("/")
            node = nested
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = value
    b = lt.optimizer(name, other.parameters(), num_steps=20, theta=nested)
    assert train(model, a, range(5)) == train(other, b, range(5))


def test_works_without_jax():
    program = f"""
import sys
from typing import Any
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "optax", "flax", "jaxtyping"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
sys.path[:0] = {sys.path!r}
import torch, lopax.torch
from torch_common import NAMES, make, small_model, train
for name in NAMES:
    model = small_model()
    optimizer = make(name, model.parameters())
    losses = train(model, optimizer, range(10))
    assert all(l == l for l in losses), name
assert "jax" not in sys.modules and "optax" not in sys.modules
print("fine", lopax.torch.RULES.names())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fine")


@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_trains_a_regression(name):
    """With published weights the loss falls by far."""
    published = shared("weights", name, "theta.state")
    model = small_model()
    optimizer = lt.optimizer(name, model.parameters(), num_steps=300, weights=published)
    losses = train(model, optimizer, range(300))
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])


@pytest.mark.parametrize("steps", [0, 2.5, 3e9, True, "7", float("nan"), 7j, {}])
def test_what_is_no_number_of_steps(steps):
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ConfigError, match="num_steps = "):
        lt.Celo([param], num_steps=steps)
    optimizer = lt.Celo([param], num_steps=torch.tensor(7.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_steps = "):
        optimizer.set_num_steps(steps)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, 1j])
@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_what_is_no_factor(setting, value):
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ConfigError, match=f"{setting} = "):
        lt.Celo([param], num_steps=9, **{setting: value})
    with pytest.raises(ConfigError, match=f"{setting} = "):
        lt.Celo([{"params": [param], setting: value}], num_steps=9)


def test_a_complex_loss_is_refused():
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = lt.Celo([param], num_steps=9)
    with pytest.raises(ConfigError, match="real number"):
        optimizer.step(loss=torch.tensor(1.0 + 1.0j))


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("name", ["celo", "celo2", "celo_adam", "learned_muon"])
def test_a_first_step_in_inference_mode(name, backend):
    """The state can be written, saved and copied outside of it."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer = lt.optimizer(name, [("w", weight)], num_steps=9, backend=backend)
    with torch.inference_mode():
        optimizer.step(loss=torch.tensor(1.0))
    optimizer.step(loss=1.0)
    optimizer.set_num_steps(20)
    assert not any(x.is_inference() for x in optimizer.state[weight].values())
    assert int(optimizer.info().iteration) == 2
