"""What would train nothing without a word: tensors of zeros, growth without a bound,
runs past their end, steps that are always skipped, factors far from one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils
from torch_common import (
    NAMES,
    NEEDS_LOSS,
    adam_like_theta,
    loss_of,
    make,
    needs_compiler,
    small_model,
    train,
    values,
)

import lopax.torch as lt
from lopax._core.errors import ConfigError
from lopax._core.sizes import FLOOR, LIMIT, VECTOR_FLOOR

SHAPES = ((), (6,), (12, 5), (3, 4, 5), (6, 4, 3, 3))
USUAL = (1.0, 1.0, 5**-0.5, 4**-0.5, 36**-0.5)  # one over the root of the fan-in
FLOORS = {"size_floor": FLOOR, "vector_floor": VECTOR_FLOOR}
BOUNDS = {"celo": {**FLOORS, "size_limit": LIMIT}, "velo": FLOORS}
RELATIVE = tuple(BOUNDS)
BUNDLED = ("celo", "celo_adam", "celo2")


def stepped(name, starts, steps, **options):
    """How far parameters move in steps with always the same gradients."""
    torch.manual_seed(1)
    params = [torch.nn.Parameter(p.clone()) for p in starts]
    for p in params:
        p.grad = torch.randn(p.shape)
    options.setdefault("theta", adam_like_theta(name))
    options = BOUNDS.get(name, {}) | options
    optimizer = make(name, params, num_steps=steps, **options)
    for _ in range(steps):
        optimizer.step(loss=1.0)
    return [p.detach() - s for p, s in zip(params, starts, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_zeros_with_a_steady_gradient_leave_zero(name):
    for moved in stepped(name, [torch.zeros(s) for s in SHAPES], 100):
        assert moved.square().mean().sqrt() > 3e-3, moved.shape


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_steps_follow_the_size_between_its_bounds(name, factor):
    """Nearly zero counts as the floor and huge as the limit, in both backends."""
    needs_compiler()
    torch.manual_seed(0)
    sizes = [factor * usual for usual in USUAL]
    starts = [torch.randn(s) for s in SHAPES]
    starts = [
        size * x / x.square().mean().sqrt()
        for x, size in zip(starts, sizes, strict=True)
    ]
    plain, fused = (stepped(name, starts, 1, backend=b) for b in ("plain", "fused"))
    free: dict[str, Any] = {"size_floor": 0.0, "vector_floor": 0.0}
    if name == "celo":
        free["size_limit"] = None
    elif factor > 1.0:
        return  # has a setting of its own for that
    published = stepped(name, starts, 1, backend="plain", **free)
    for k, usual in enumerate(USUAL):
        torch.testing.assert_close(plain[k], fused[k], rtol=2e-3, atol=0.0)
        floor = VECTOR_FLOOR if k < 2 else FLOOR
        counted = usual * (floor if factor < 1.0 else LIMIT)
        size = (sizes[k] ** 2 + 1e-9) ** 0.5
        expected = published[k] / size * counted
        torch.testing.assert_close(plain[k], expected, rtol=2e-3, atol=0.0)


class LowRank(torch.nn.Module):
    """A frozen layer with an adapter, whose second matrix starts at zero."""

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(16, 16, bias=False).requires_grad_(False)
        self.a = torch.nn.Linear(16, 4, bias=False)
        self.b = torch.nn.Linear(4, 16, bias=False)
        torch.nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def adapted(name):
    """The loss of the adapter at the start and at the end."""
    torch.manual_seed(0)
    net = LowRank()
    change = torch.randn(16, 4) @ torch.randn(4, 16) / 40.0
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    if name == "adamw":
        optimizer = torch.optim.AdamW([p for _, p in named], 1e-2)
    else:
        optimizer = lt.optimizer(name, named, num_steps=200)
    losses = []
    for _ in range(200):
        x = torch.randn(64, 16)
        with torch.no_grad():
            y = net.base(x) + x @ change.T
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(**({} if name == "adamw" else {"loss": loss}))
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", BUNDLED)
def test_a_low_rank_adapter_trains_as_with_adamw(name):
    start, end = adapted(name)
    assert end < max(2.0 * adapted("adamw")[1], 0.01 * start)


@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_run_warns_of_nothing(name):
    model = small_model()
    optimizer = make(name, model.parameters(), num_steps=12)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, 1.0, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(12):
            train(model, optimizer, range(step, step + 1))
            scheduler.step()


@pytest.mark.parametrize("name", NAMES)
def test_past_the_end_there_is_one_warning(name):
    model = small_model()
    optimizer = make(name, model.parameters(), num_steps=3)
    train(model, optimizer, range(3))
    needs = optimizer._rule.needs_horizon
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(model, optimizer, range(3, 6))
    found = [w for w in told if issubclass(w.category, lt.HorizonWarning)]
    assert len(found) == len(told) == needs
    if needs:
        assert "step 4 of a run of 3" in str(found[0].message)
        assert found[0].filename.endswith("torch_common.py")  # the caller's line


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_are_always_skipped_name_the_parameter(name):
    model = small_model()
    optimizer = make(name, model.named_parameters(), num_steps=200)
    before, loss = values(model).clone(), torch.tensor(0.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(105):
            if step in (0, 101):
                loss = loss_of(model, step)
                optimizer.zero_grad()
                loss.backward()
                model[2].bias.grad[1] = float("nan")
            optimizer.step(loss=loss)
    texts = [str(w.message) for w in told]
    assert [w.category for w in told] == [lt.SkippedWarning] * 2, texts
    assert texts[0].startswith("10 steps in a row") and "'2.bias'" in texts[0]
    assert texts[1].startswith("100 steps in a row")
    assert torch.equal(values(model), before)


def test_a_step_skipped_now_and_then_is_no_reason_to_warn():
    model = small_model()
    optimizer = make("celo", model.parameters(), num_steps=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(60):
            loss_of(model, step).backward()
            optimizer.step(loss=1.0 if step % 10 == 3 else float("nan"))


def test_a_loss_that_is_never_finite_is_said_to_be_it():
    model = small_model()
    optimizer = make("celo", model.parameters(), num_steps=100)
    loss_of(model, 0).backward()
    with pytest.warns(lt.SkippedWarning, match="the loss is not finite"):
        for _ in range(10):
            optimizer.step(loss=float("inf"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["made with", "scheduled", "written"])
def test_a_learning_rate_is_taken_for_a_mistake(name, way):
    model = small_model()
    lr = 1.0 if way == "written" else 1e-3
    optimizer = make(name, model.parameters(), num_steps=200, lr=lr)
    if way == "scheduled":
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(101):
            if way == "written":
                optimizer.param_groups[0]["lr"] = 1e-3
            if step == 0:
                loss_of(model, step).backward()
            optimizer.step(loss=1.0)
    assert [w.category for w in told] == [lt.StepSizeWarning]
    assert "lr = 0.001" in str(told[0].message)


SCHEDULES = {
    "one cycle": lambda o, lr: lr_scheduler.OneCycleLR(
        o, lr, total_steps=110, cycle_momentum=False
    ),
    "warm-up": lambda o, lr: lr_scheduler.LinearLR(o, 1e-3, 1.0, 50),
    "cosine": lambda o, lr: lr_scheduler.CosineAnnealingLR(o, 110),
    "exponential": lambda o, lr: lr_scheduler.ExponentialLR(o, 0.9),
    "averaging": lambda o, lr: swa_utils.SWALR(o, swa_lr=0.1 * lr, anneal_epochs=5),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("lr", [1.0, 1e-3])
def test_a_schedule_is_judged_by_what_it_goes_down_from(schedule, lr):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = lt.optimizer("celo_adam", [weight], num_steps=110, lr=lr)
    scheduler = SCHEDULES[schedule](optimizer, lr)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(101):
            weight.grad = torch.ones(4)
            optimizer.step(loss=1.0)
            scheduler.step()
    assert [w.category for w in told] == [lt.StepSizeWarning] * (lr != 1.0)


def test_growth_without_a_bound_is_linear_and_said():
    """A loss with no lower bound: steps grow with the parameters up to a limit."""
    weight = torch.nn.Parameter(torch.full((8, 8), 0.3))
    optimizer = make(
        "celo",
        [("critic", weight)],
        num_steps=600,
        theta=adam_like_theta("celo"),
        trained_horizon=None,
        size_limit=8.0,
        lr=20.0,
    )
    sizes = []
    with pytest.warns(lt.GrowthWarning, match="critic") as told:
        for _ in range(600):
            weight.grad = -torch.ones(8, 8)
            optimizer.step(loss=-weight.detach().sum())
            sizes.append(weight.detach().abs().mean().item())
    assert len(told) == 1
    early, late = sizes[399] - sizes[199], sizes[599] - sizes[399]
    assert sizes[-1] > 80.0 * 8**-0.5 and late < 2.0 * early


def test_the_loss_may_come_first_and_a_closure_may_return_nothing():
    results = []

    def ready():
        model = small_model()
        loss = loss_of(model, 0)
        loss.backward()
        return model, make("celo", model.parameters()), loss

    for way in range(4):
        model, optimizer, loss = ready()
        if way == 0:
            assert optimizer.step(loss=loss) is loss
        elif way == 1:
            assert optimizer.step(loss) is loss
        elif way == 2:
            optimizer.step(loss.item())
        else:
            optimizer.step(lambda: None, loss=loss)
        results.append(values(model))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
    _, optimizer, loss = ready()
    with pytest.raises(ConfigError, match="not both"):
        optimizer.step(loss, loss=loss)


@pytest.mark.parametrize("first", ["zero_grad", "observe"])
def test_the_loss_of_a_step_that_never_came_is_forgotten(first):
    def train_one(optimizer, model, step, come=True):
        loss = loss_of(model, step)
        if first == "observe":
            optimizer.observe(loss)
        optimizer.zero_grad()
        loss.backward()
        if first == "zero_grad":
            optimizer.observe(loss)
        if come:
            optimizer.step()

    results = []
    for skips in (False, True):
        model = small_model()
        optimizer = make("celo", model.parameters())
        train_one(optimizer, model, 0)
        if skips:
            train_one(optimizer, model, 1, come=False)
        train_one(optimizer, model, 2)
        results.append(values(model))
    assert torch.equal(*results)


def test_observed_losses_of_accumulated_gradients_are_averaged():
    model = small_model()
    optimizer = make("celo", model.parameters())
    optimizer.zero_grad()
    for step in range(2):
        loss = loss_of(model, step)
        loss.backward()
        optimizer.observe(loss)
    expected = (loss_of(model, 0) + loss_of(model, 1)).item() / 2
    assert optimizer._observed.take().item() == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_lazy_modules_get_their_state_when_they_have_a_shape(name):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.LazyLinear(2))
    optimizer = make(name, net.named_parameters())
    loss = net(torch.randn(3, 5)).square().mean()
    loss.backward()
    before = values(net).clone()
    optimizer.step(loss=loss)
    assert not torch.equal(values(net), before)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_train_step_gives_the_same_and_traces_no_rule(name):
    """The step is called as it is, from the first one on: nothing of the rule is
    traced, which took the default backend minutes."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def run(wrap):
        model = small_model()
        optimizer = make(name, model.parameters())

        def step(x, y):
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            if name in NEEDS_LOSS:
                optimizer.step(loss=loss)
            else:
                optimizer.step()

        step = wrap(step)
        torch.manual_seed(3)
        for _ in range(3):
            step(torch.randn(16, 5), torch.randn(16, 3))
        return values(model)

    torch._dynamo.reset()
    found = run(lambda step: torch.compile(step, backend=backend))
    torch.testing.assert_close(found, run(lambda step: step), rtol=1e-6, atol=1e-7)
    nodes = sum(len(graph.graph.nodes) for graph in graphs)
    assert 0 < nodes < 100


NAMED = {
    "block.self_attn.in_proj_weight": True,
    "h.0.attn.c_attn.weight": True,
    "layers.1.q_proj.weight": True,
    "body.0.weight": False,
}


@pytest.mark.parametrize("name", NAMED)
def test_attention_under_the_bundled_celo_adam(name):
    def told(rule: str, **settings: object) -> list[str]:
        weight = torch.nn.Parameter(torch.ones(4, 4))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            lt.optimizer(rule, [(name, weight)], num_steps=9, **settings)
        assert all(w.category is lt.StepSizeWarning for w in found)
        return [str(w.message) for w in found]

    messages = told("celo_adam")
    assert len(messages) == NAMED[name] and all("lr=0.3" in m for m in messages)
    assert not told("celo_adam", lr=0.3) and not told("celo") and not told("celo2")
