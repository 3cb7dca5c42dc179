"""The torch rules give the published numbers, JAX's numbers, and one another's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import rule_table
import torch
from shared_files import golden
from torch_common import (
    FUSED_CPU,
    NAMES,
    SETTINGS,
    make,
    needs_compiler,
    random_theta,
    to_torch_layout,
)

import lopax.torch as lt
from lopax._core.errors import ConfigError
from lopax.native.blocks import Blocks
from lopax.pretrained.files import write_arrays
from lopax.rules.form import EACH
from lopax.torch import structure
from lopax.torch.geometry import place_of
from lopax.torch.settings import known_settings

GOLDEN = {
    "celo": ("celo", {}),
    "celo_phase1": ("celo", {"phase": 1}),
    "celo_random": ("celo", {}),
    "celo_adam": ("celo_adam", {}),
    "celo_adam_random": ("celo_adam", {}),
    "velo_s": ("velo", {"lstm": 64, "bank": 32, "bank_mult": 1.0}),
    "adafac_mlp": ("adafac_mlp", {}),
    "celo2base": ("celo2_base", {}),
    "nn_adam": ("nn_adam", {}),
    "rnn_mlp": ("rnn_mlp", {"unseen_validation": "zero"}),
    "celo2": (
        "celo2",
        {"routes": [{"role": "adam", "name": "/b$"}], "weight_decay": 0.01},
    ),
}
QUICK = ("celo", "celo2", "velo")  # the rules whose step compiles in every run
TOLERANCE = {"celo2": 1e-4}  # the iteration amplifies rounding in small directions


@pytest.fixture(params=["plain", "fused"])
def backend(request):
    if request.param == "fused":
        needs_compiler()
    return request.param


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
@pytest.mark.parametrize("file", GOLDEN)
def test_golden_files(file, layout, backend, tmp_path):
    """The published implementations' numbers; settings come from a weights file."""
    data = golden(file)
    name, config = GOLDEN[file]
    if why := rule_table.why_not("torch", name, backend):
        pytest.skip(why)
    store = to_torch_layout if layout == "out_in" else np.asarray
    tensors = [k.removeprefix("params/") for k in data if k.startswith("params/")]
    params = {
        k: torch.nn.Parameter(torch.tensor(store(data[f"params/{k}"]))) for k in tensors
    }
    weights = tmp_path / "theta.safetensors"
    theta = {k[6:]: v for k, v in data.items() if k.startswith("theta/")}
    write_arrays(weights, theta, {"architecture": name, "config": config})
    optimizer = lt.optimizer(
        name,
        [(k.replace("/", "."), p) for k, p in params.items()],
        num_steps=int(data["num_steps"]),
        weights=weights,
        layout=layout,
        backend=backend,
    )
    tolerance = TOLERANCE.get(file, 1e-5)
    for t, loss in enumerate(data["loss"]):
        for k, p in params.items():
            p.grad = torch.tensor(store(data[f"grads/{k}"][t]))
        optimizer.step(loss=torch.tensor(loss))
        for k, p in params.items():
            expected = store(data[f"expected/{k}"][t])
            # Relative to the tensor: single elements pass through zero.
            error = np.linalg.norm(p.detach().numpy() - expected)
            assert error <= tolerance * np.linalg.norm(expected), (k, t, error)
    last = list(params)[-1]
    expected = store(data[f"expected/{last}"][-1])
    moved = np.linalg.norm(expected - store(data[f"params/{last}"]))
    assert moved > 1e-4 * np.linalg.norm(expected)


SHAPES = [
    (),
    (1,),
    (7,),
    (300,),
    (1, 1),
    (7, 1),
    (6, 6),
    (12, 5),
    (5, 12),
    (3, 300),
    (700, 3),
    (2, 3, 4),
    (4, 4, 4),
    (8, 8, 3, 3),
    (3, 3, 8, 8),
    (10, 20, 5, 5),
    (6, 40, 300),
    (300, 6, 40),
    (9, 9, 257),
    (2, 3, 4, 5, 6),
    (0, 4),
]


def random_grads(shapes, steps, seed=0):
    generator = np.random.default_rng(seed)
    scales = np.exp(generator.uniform(-6, 1, len(shapes)))
    for step in range(steps):
        yield [
            np.asarray(generator.standard_normal(s) * a * (step != 2), np.float32)
            for s, a in zip(shapes, scales, strict=True)
        ]


FORMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FUSED_CPU),
    ("celo", {"hidden": 8, "size_floor": 0.1, "vector_floor": 0.5, "size_limit": 2.0}),
    ("velo", {"hidden": 12, "norm_factor": "clipped", "norm_limit": 0.1}),
    ("adafac_mlp", {"hidden": 33}),
    ("celo2", {"hidden": 8, "convolutions": "slices", "schedule": "constant"}),
    ("celo2_base", {"hidden": 9, "exp_mult": 0.1}),
    ("celo2_base", {"hidden": 4, "convolutions": "flat"}),
]
"""Rules the C core steps, with settings over those of the tests."""


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize(("name", "settings"), FORMS)
def test_fused_cpu_equals_plain(name, settings, layout):
    needs_compiler()
    theta = random_theta(name, **settings)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator) * 0.3 for s in SHAPES]
    runs = {}
    for kind in ("plain", "fused"):
        params = [torch.nn.Parameter(p.clone()) for p in start]
        more = {"theta": theta, "weight_decay": 0.1, "lr": 0.7, **settings}
        optimizer = make(name, params, backend=kind, layout=layout, **more)
        for grads in random_grads(SHAPES, 8):
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step(loss=1.0)
        runs[kind] = params, [optimizer.state[p] for p in params]
    for a, b, first in zip(runs["plain"][0], runs["fused"][0], start, strict=True):
        # Orthogonalising amplifies the rounding of small directions.
        rtol, atol = (1e-3, 1e-5) if name == "celo2" else (1e-4, 2e-7)
        torch.testing.assert_close(a - first, b - first, rtol=rtol, atol=atol)
        assert not a.numel() or not torch.equal(a, first)
    for a, b in zip(runs["plain"][1], runs["fused"][1], strict=True):
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-9, msg=key)


def test_fused_cpu_is_bitwise_the_same_for_any_number_of_threads():
    needs_compiler()
    shapes = [(700, 300), (64, 32, 3, 3), (5000,)]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params = [torch.nn.Parameter(torch.full(s, 0.1)) for s in shapes]
            optimizer = make("celo", params, backend="fused")
            for grads in random_grads(shapes, 3):
                for p, g in zip(params, grads, strict=True):
                    p.grad = torch.tensor(g)
                optimizer.step(loss=1.0)
            results.append(params)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Time constants of the loss history reach from 10 to the horizon. Close together, or
# with a constant loss, their differences are rounding errors.
HORIZON = 500


def jax_run(name, theta, start, all_grads, losses):
    jax = pytest.importorskip("jax")
    from quick_compile import quick_jit

    from lopax.architectures import architecture

    rule: Any = architecture(name, **SETTINGS.get(name, {}))
    theta = rule.theta_from_arrays(theta)
    params = [jax.numpy.asarray(p) for p in start]
    state = rule.init(theta, params, HORIZON)

    def update(grads, state, params, loss):
        return rule.update(theta, grads, state, params, value=loss)

    update = quick_jit(update)
    for grads, loss in zip(all_grads, losses, strict=True):
        updates, state, _ = update(grads, state, params, loss)
        params = [p + u for p, u in zip(params, updates, strict=True)]
    return params, state


TREE = [(), (1,), (9,), (7, 1), (6, 6), (5, 12), (3, 300), (2, 3, 4), (3, 3, 8, 8)]


@pytest.mark.parametrize("name", NAMES)
def test_jax_and_torch_agree_on_random_trees(name, backend):
    """All ranks, stored in JAX's layout there and in torch's here; one bad step."""
    if why := rule_table.why_not("torch", name, backend):
        pytest.skip(why)
    generator = np.random.default_rng(1)
    start = [np.asarray(generator.standard_normal(s), np.float32) for s in TREE]
    theta = random_theta(name, seed=3)
    all_grads = list(random_grads(TREE, 12, seed=4))
    all_grads[5][3][0] = np.inf
    losses = (2.0 - 0.1 * np.arange(12) + 0.3 * np.sin(3.0 * np.arange(12))).astype("f")
    losses[8] = np.nan
    expected, state = jax_run(name, theta, start, all_grads, losses)
    params = [torch.nn.Parameter(torch.tensor(to_torch_layout(p))) for p in start]
    optimizer = make(name, params, num_steps=HORIZON, theta=theta, backend=backend)
    for grads, loss in zip(all_grads, losses, strict=True):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(to_torch_layout(g))
        optimizer.step(loss=torch.tensor(loss))
    for p, e, s in zip(params, expected, start, strict=True):
        e, s = to_torch_layout(e), to_torch_layout(s)
        difference = np.linalg.norm(p.detach().numpy() - e)
        rounding = 1e-7 * np.linalg.norm(e) * 12
        tolerance = 10 * TOLERANCE.get(name, 1e-5)
        assert difference <= tolerance * np.linalg.norm(e - s) + rounding, s.shape
    info = optimizer.info()
    assert int(info.skipped) == int(state.skipped) == 2
    assert int(info.iteration) == int(state.iteration) == 12


def test_settings_are_those_of_the_jax_rules():
    pytest.importorskip("jax")
    from lopax.architectures import ARCHITECTURES

    for name in NAMES:
        assert lt.RULES[name].rule_class.config_class is ARCHITECTURES[name].config


@pytest.mark.parametrize(
    ("name", "settings"),
    [("celo", {"start": "adam"}), ("adafac_mlp", {"unrolled": True})],
)
def test_settings_of_jax_alone_are_refused(name, settings):
    """What would do nothing; saved with weights it is passed over."""
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} = .*leave it out"):
        make(name, [param], **settings)
    rule = lt.RULES[name].rule_class
    assert known_settings(rule, {**settings, "hidden": 3}) == {"hidden": 3}


def factored_axes(shape, layout):
    return place_of(shape, layout).factored


def test_factored_axes():
    assert factored_axes((5,), "out_in") is None
    assert factored_axes((3, 7), "out_in") == (0, 1) == factored_axes((3, 7), "in_out")
    # A square matrix: "in" before "out", wherever it is stored.
    assert factored_axes((4, 4), "in_out") == (0, 1)
    assert factored_axes((4, 4), "out_in") == (1, 0)
    assert factored_axes((3, 3, 64, 64), "in_out") == (2, 3)
    assert factored_axes((64, 64, 3, 3), "out_in") == (1, 0)
    # A patch embedding: the window's second axis (16, 16, in, out: index 1).
    assert factored_axes((16, 16, 3, 768), "in_out") == (1, 3)
    assert factored_axes((768, 3, 16, 16), "out_in") == (3, 0)


def test_blocks_cover_the_tensor():
    for shape in SHAPES:
        shape = shape or (1,)
        blocks = Blocks.of(shape, factored_axes(shape, "out_in"))
        size = blocks.a * blocks.x * blocks.b * blocks.y * blocks.c
        assert size == int(np.prod(shape))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_plain_rule_compiles_once(name):
    """No recompilation when the learning rate, the loss or the step change."""
    needs_compiler()
    shapes = [(6, 4), (4,), (4,)]
    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer = make(name, params, backend="plain", compilable=True)
    eager = make(name, twins, backend="plain")
    compiles = []

    def counting(graph, inputs):
        compiles.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(optimizer.step, backend=counting)
    counts = []
    for i, grads in enumerate(random_grads(shapes, 7)):
        for p, q, g in zip(params, twins, grads, strict=True):
            p.grad, q.grad = torch.tensor(g), torch.tensor(g)
        for o in (optimizer, eager):
            o.param_groups[0]["lr"] = 1.0 / (1 + i)
        step(loss=torch.tensor(1.0 / (1 + i)))
        eager.step(loss=torch.tensor(1.0 / (1 + i)))
        counts.append(len(compiles))
    assert counts[-1] == counts[2] > 0, counts
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_two_arrays_of_one_name_are_refused() -> None:
    """A state dict would keep one of them."""

    class Inner(NamedTuple):
        momenta: Any

    class Outer(NamedTuple):
        momenta: Any
        inner: Any

    for outer in (EACH, None):
        with pytest.raises(ConfigError, match="Outer keeps are called 'momenta'"):
            structure.arrays(Outer(outer, Inner(EACH)))
