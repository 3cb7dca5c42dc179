"""What the PyTorch tests share: random meta-parameters and small models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lopax.torch as lt
from lopax.torch import fused_cpu
from lopax.torch.errors import BackendUnavailable

NAMES = ("celo", "celo_adam")


def random_theta(name: str, seed: int = 0, **config: Any) -> dict[str, np.ndarray]:
    """Meta-parameters of a sensible size: weights of order 1/sqrt(fan-in)."""
    rule = lt.RULES[name].rule_class
    generator = np.random.default_rng(seed)
    arrays = {}
    for path, shape in rule.theta_shapes(rule.config_class(**config)).items():
        fan_in = shape[0] if len(shape) == 2 else 25
        values = generator.standard_normal(shape) / np.sqrt(fan_in)
        arrays[path] = values.astype(np.float32)
    return arrays


def make(name: str, params: Any, num_steps: Any = 50, **options: Any):
    """An optimizer with random meta-parameters."""
    options.setdefault("theta", random_theta(name))
    return lt.optimizer(name, params, num_steps=num_steps, **options)


def needs_compiler() -> None:
    """Skips the test where the fused CPU kernels cannot be built."""
    try:
        fused_cpu.library(4)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def small_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    )


def batch(step: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    x = torch.randn(16, 5, generator=generator)
    return x, torch.stack([x.sum(1), x[:, 0] * x[:, 1], x[:, 2].sin()], 1)


def loss_of(model: torch.nn.Module, step: int, seed: int = 0) -> torch.Tensor:
    x, y = batch(step, seed)
    return torch.nn.functional.mse_loss(model(x), y)


def train(model: torch.nn.Module, optimizer: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    return losses


def values(model: torch.nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])
