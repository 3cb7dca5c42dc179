"""Zero gradients, stacked tensors and roles in torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'lopax[torch]'")

from torch_common import NAMES, make, random_theta  # noqa: E402

import lopax.torch as lt  # noqa: E402
from lopax._core.errors import ConfigError  # noqa: E402

LAYERS = 3
BACKENDS = ("plain", "auto")


def draw(seed: int, *shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_never_saw_a_gradient_stays(name: str, backend: str) -> None:
    masks = {
        "backbone": torch.zeros(6, 4),
        "bias": torch.zeros(5),
        "embedding": torch.ones(8, 4).index_fill(0, torch.tensor([2, 3]), 0.0),
        "w": (torch.arange(64).reshape(8, 8) % 2).float(),
    }
    params = {
        k: torch.nn.Parameter(draw(i, *m.shape))
        for i, (k, m) in enumerate(masks.items())
    }
    start = {k: p.detach().clone() for k, p in params.items()}
    optimizer = make(name, list(params.items()), backend=backend)
    for step in range(20):
        for i, (k, p) in enumerate(params.items()):
            p.grad = draw(100 * step + i, *p.shape) * masks[k]
        optimizer.step(loss=1.0)
    for k, p in params.items():
        live = masks[k] > 0
        assert torch.equal(p.detach()[~live], start[k][~live]), k
        assert bool((p.detach()[live] != start[k][live]).all()), k


def trained(name: str, backend: str, stack: bool, axis: int = 0) -> Any:
    weights = [draw(i, 6, 8) * (1 + i) for i in range(LAYERS)]
    biases = [draw(9 + i, 5) for i in range(LAYERS)]
    if stack:
        named = [("w", torch.stack(weights, axis)), ("b", torch.stack(biases))]
        routes = [
            lt.Route(name="w", stack_axes=(axis,)),
            lt.Route(name="b", stack_axes=(0,)),
        ]
    else:
        named = [(f"{i}", x) for i, x in enumerate([*weights, *biases])]
        routes = []
    params = [(n, torch.nn.Parameter(x)) for n, x in named]
    optimizer = make(name, params, backend=backend, routes=routes, weight_decay=0.1)
    for step in range(3):
        grads = [draw(20 * step + i, 6, 8) for i in range(LAYERS)]
        others = [draw(20 * step + 9 + i, 5) for i in range(LAYERS)]
        given = [torch.stack(grads, axis), torch.stack(others)]
        for (_, p), g in zip(params, given if stack else grads + others, strict=True):
            p.grad = g.clone()
        optimizer.step(loss=1.0)
    values = [p.detach() for _, p in params]
    if stack:
        values = [*values[0].unbind(axis), *values[1].unbind(0)]
    return values, optimizer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [0, 2])
def test_a_stack_is_trained_as_separate_tensors(
    name: str, backend: str, axis: int
) -> None:
    apart, _ = trained(name, backend, False)
    together, optimizer = trained(name, backend, True, axis)
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    # Its state is saved and restored, also by a copy.
    saved = optimizer.state_dict()
    optimizer.load_state_dict(copy.deepcopy(saved))
    w = optimizer.param_groups[0]["params"][0]
    own = [v for k, v in optimizer.state[w].items() if not k.startswith("shared_")]
    assert own
    assert all(len(v) == LAYERS for v in own)
    copy.deepcopy(optimizer)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_several_axes_make_one_side_of_a_matrix(layout: str) -> None:
    """A kernel [E, H, D] moves as the matrix that it is."""
    start, grads = draw(0, 6, 2, 3), [draw(i + 1, 6, 2, 3) for i in range(3)]
    routes = [lt.Route(output_axes=(1, 2))]
    options: Any = {"theta": random_theta("celo2"), "hidden": 3, "layout": layout}
    kernel = torch.nn.Parameter(start.clone())
    optimizer = lt.Celo2([("q", kernel)], routes=routes, **options)
    assert optimizer.roles() == {"q": "orthogonal"}

    def matrix(x: Any) -> Any:
        return x.reshape(6, 6).T if layout == "out_in" else x.reshape(6, 6)

    flat = torch.nn.Parameter(matrix(start).contiguous())
    reference = lt.Celo2([("q", flat)], **options)
    for g in grads:
        kernel.grad, flat.grad = g.clone(), matrix(g).contiguous()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(matrix(kernel.detach()), flat.detach())


def celo2(params: Any, **options: Any) -> Any:
    return lt.optimizer("celo2", params, num_steps=5, **options)


def test_a_model_shows_its_embeddings() -> None:
    """By the type of a module, whatever it is called, and what is tied to it."""
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(4, 11, bias=False), "b": torch.nn.Embedding(11, 4)}
    )
    assert celo2(model.named_parameters()).roles() == {
        "a/weight": "orthogonal",
        "b/weight": "orthogonal",
    }
    assert celo2(model).roles() == {"a/weight": "orthogonal", "b/weight": "adam"}
    model["a"].weight = model["b"].weight
    optimizer = celo2(model)
    assert optimizer.roles() == {"a/weight": "adam"}
    model["a"].weight.grad = torch.ones(11, 4)
    optimizer.step()
    assert optimizer.info().roles == {"a/weight": "adam"}
    assert copy.deepcopy(optimizer).roles() == {"a/weight": "adam"}


def test_usual_names_of_embeddings_and_heads() -> None:
    w = torch.nn.Parameter(torch.zeros(9, 4))
    for name in ("model.embed_tokens", "transformer.wte", "shared", "lm_head"):
        roles = celo2([(f"{name}.weight", w)]).roles()
        assert list(roles.values()) == ["adam"], name
    for name in ("h.0.attn.c_attn", "head", "mixer.token_mixing"):
        roles = celo2([(f"{name}.weight", w)]).roles()
        assert list(roles.values()) == ["orthogonal"], name


def test_a_user_s_routes_come_first() -> None:
    w = torch.nn.Parameter(torch.zeros(9, 4))
    routes = [lt.Route(role="learned", name="wte")]
    optimizer = celo2(
        [("wte.weight", w), ("h.w", torch.nn.Parameter(w + 1))], routes=routes
    )
    assert list(optimizer.roles().values()) == ["learned", "orthogonal"]
    with pytest.raises(ConfigError, match="no roles"):
        lt.optimizer("celo", [w], num_steps=3, routes=routes)
