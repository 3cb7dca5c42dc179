"""Learned Muon in torch: the bundled weights, sizes, late tensors, convolutions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch_common import loss_of, make, random_theta, small_model, train, values

import lopax.torch as lt


def test_bundled_weights_train_untuned() -> None:
    model = small_model()
    optimizer = lt.LearnedMuon(model, num_steps=60)
    losses = train(model, optimizer, range(60))
    assert losses[-1] < 0.5 * losses[0]
    roles = optimizer.info().roles
    assert roles["0/weight"] == "matrix" and roles["0/bias"] == "vector"


PARTS = {
    "history": True,
    "outputs": True,
    "kernels": True,
    "blend": True,
    "elements": 3,
}


@pytest.mark.parametrize("settings", [{}, PARTS])
def test_numbers_are_those_of_jax(settings: dict[str, Any]) -> None:
    """Of the bundled weights, and of parts that they do not have."""
    jax = pytest.importorskip("jax")
    import lopax

    given: dict[str, Any] = {"settings": settings}
    if settings:
        rule = lopax.architecture("learned_muon", **settings)
        theta = rule.init_theta(jax.random.key(0))
        # Not zero, so that all parts act.
        theta = jax.tree.map(lambda x: x + 0.05, theta)
        given["theta"] = {
            k: np.asarray(v) for k, v in rule.theta_to_arrays(theta).items()
        }
    model = small_model()
    optimizer = lt.LearnedMuon(model, num_steps=8, **given)
    params = {k: v.detach().numpy().T for k, v in model.named_parameters()}
    theirs = lopax.optimizer("learned_muon", num_steps=8, **given)
    state = theirs.init(params)
    update = jax.jit(theirs.update)
    start = copy.deepcopy(params)
    for step in range(8):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        grads = {k: v.grad.numpy().T for k, v in model.named_parameters()}
        updates, state = update(grads, state, params, value=loss.item())
        params = {k: params[k] + np.asarray(u) for k, u in updates.items()}
        optimizer.step(loss=loss.item())
    for name, p in model.named_parameters():
        moved = np.linalg.norm(params[name] - start[name])
        error = np.linalg.norm(p.detach().numpy().T - params[name])
        assert moved > 1e-3 and error <= 1e-3 * moved, name


def test_steps_follow_the_scale_of_the_network() -> None:
    sizes = []
    for scale in (1.0, 1000.0):
        model = small_model()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        optimizer = make("learned_muon", model.named_parameters())
        before = values(model)
        for p in model.parameters():
            generator = torch.Generator().manual_seed(p.numel())
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step(loss=1.0)
        sizes.append((values(model) - before).norm().item())
    assert 300.0 < sizes[1] / sizes[0] < 3000.0


def test_a_tensor_that_joins_late_steps_as_a_first_step_does() -> None:
    """Its averages are corrected by its own steps, and its size is that of its own
    start, relative to the network's."""
    late = torch.nn.Parameter(torch.full((6, 4), 0.3))
    early = torch.nn.Parameter(torch.full((6, 4), 0.3))
    first = torch.nn.Parameter(torch.randn(5, 5))
    settings = {"num_steps": 10**6, "learned": False, "warmup": 0.0}
    optimizer = make("learned_muon", [first, late], **settings)
    other = make("learned_muon", [early], **settings)
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        first.grad = torch.randn(5, 5)
        optimizer.step()
    late.grad, early.grad = gradient, gradient.clone()
    optimizer.step()
    other.step()
    torch.testing.assert_close(late.data, early.data, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_a_convolution_is_one_matrix(layout: str) -> None:
    shape = (8, 3, 5) if layout == "out_in" else (5, 3, 8)
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    param = torch.nn.Parameter(kernel.clone())
    optimizer = make("learned_muon", [param], learned=False, layout=layout)
    param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    delta = (param.detach() - kernel).reshape(
        (8, 15) if layout == "out_in" else (15, 8)
    )
    singular = torch.linalg.svdvals(delta)
    assert singular.max() / singular.min() < 3.0


@pytest.mark.parametrize(
    ("shape", "factor"), [((8, 3, 5, 5), np.exp(0.7)), ((8, 3, 5), 1.0), ((8, 15), 1.0)]
)
def test_a_convolutions_kernel_has_a_size_of_its_own(
    shape: tuple[int, ...], factor: float
) -> None:
    start, gradient = (
        torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    )
    moved = []
    for size in (0.0, 0.7):
        param = torch.nn.Parameter(start.clone())
        theta = {
            **random_theta("learned_muon", kernels=True),
            "kernels": np.float32(size),
        }
        optimizer = make("learned_muon", [param], kernels=True, theta=theta)
        param.grad = gradient.clone()
        optimizer.step(loss=1.0)
        moved.append(param.detach() - start)
    torch.testing.assert_close(moved[1], factor * moved[0], rtol=1e-4, atol=1e-6)
