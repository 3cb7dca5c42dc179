"""What the PyTorch tests share: random meta-parameters and small models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rule_table
import torch

import lopax.torch as lt
from lopax._core.config import from_dict
from lopax.rules.form import Rule
from lopax.torch import fused_cpu
from lopax.torch.errors import BackendUnavailable
from lopax.torch.theta import theta_shapes

NAMES = rule_table.names("torch")
FUSED_CPU = rule_table.names("torch", "fused")
FUSED_CUDA = rule_table.names("torch", "triton")

SETTINGS: dict[str, dict[str, Any]] = {
    "celo": {"trained_horizon": 20},  # less than the runs of the tests
    # Small, and so that the random bank's mixture is of order one.
    "velo": {"lstm": 16, "bank": 8, "bank_mult": 1.0, "hidden": 3},
    # By rank alone, so that parameters need no names.
    "celo2": {
        "routes": ({"role": "adam", "max_rank": 1}, {"role": "orthogonal"}),
        "hidden": 3,
        "schedule": "cosine",
        "convolutions": "flat",
    },
    "celo2_base": {"hidden": 3},
    "adafac_mlp": {"hidden": 3},
    "mulo": {
        "routes": ({"role": "other", "max_rank": 1}, {"role": "hidden"}),
        "hidden": 3,
        "base_width": 8.0,
        "step_mult": 1e-3,
    },
    "star": {"hidden": 3, "decay_controller": True, "nominal": 0.01},
    "plain_mlp": {"hidden": 3},
    "rnn_mlp": {"lstm": 4, "hidden": 4},
    "nn_adam": {"lstm": 4},
    "l2o_lstm": {"lstm": 3, "step_mult": 0.01},
    "l2o_gru": {"units": 3, "step_mult": 0.01},
    "scheduled_adam": {"knots": 3},
    "optim4rl": {"units": 2},
    "linear_optim": {"units": 2},
    "l2lgd2": {"units": 2},
    "learned_muon": {  # with all its parts
        "routes": ({"role": "vector", "max_rank": 1}, {"role": "matrix"}),
        "history": True,
        "outputs": True,
        "elements": 2,
    },
}
"""Settings with which the tests make a rule, over its defaults."""


def rule_of(name: str, **settings: Any) -> Rule:
    """The rule as the tests make it, `settings` over theirs."""
    kind = lt.RULES[name].rule_class
    config = {**SETTINGS.get(name, {}), **settings}
    return kind(from_dict(kind.config_class, config))


NEEDS_LOSS = tuple(n for n in NAMES if rule_of(n).needs_loss)


START = {
    "learned_sgd": {"log_lr": -4.0, "one_minus_momentum": -2.0},
    "learned_adam": {
        "log_lr": -4.0,
        "one_minus_beta1": -2.0,
        "one_minus_beta2": -5.0,
        "log_epsilon": -18.0,
    },
    "nn_adam": {
        "hypers/lr": -0.6,
        "hypers/beta1": -0.4,
        "hypers/beta2": -0.8,
        "hypers/epsilon": -2.0,
    },
}
START["scheduled_adam"] = START["learned_adam"]
"""What random numbers are added to, where a rule would not train around zero."""


def random_theta(name: str, seed: int = 0, **settings: Any) -> dict[str, np.ndarray]:
    """Meta-parameters of a sensible size: weights of order 1/sqrt(fan-in).

    `settings`: over those of the tests.
    """
    generator = np.random.default_rng(seed)
    arrays = {}
    for path, shape in theta_shapes(rule_of(name, **settings)).items():
        fan_in = shape[-2] if len(shape) >= 2 else 25
        if path.startswith("decays/"):  # offsets, in which a decay is exponential
            fan_in = 1000
        values = generator.standard_normal(shape) / np.sqrt(fan_in)
        arrays[path] = (values + START.get(name, {}).get(path, 0.0)).astype(np.float32)
    return arrays


def make(name: str, params: Any, num_steps: Any = 50, **options: Any):
    """An optimizer with random meta-parameters."""
    options = {**SETTINGS.get(name, {}), **options}
    options.setdefault("theta", random_theta(name))
    return lt.optimizer(name, params, num_steps=num_steps, **options)


def needs_compiler() -> None:
    """Skips the test where the fused CPU kernels cannot be built."""
    try:
        fused_cpu.core(4)
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


def to_torch_layout(x: Any) -> np.ndarray:
    """(*window, in, out) -> (out, in, *window)."""
    x = np.asarray(x)
    return x if x.ndim < 2 else np.ascontiguousarray(np.moveaxis(x, (-1, -2), (0, 1)))


def adam_like_theta(name: str) -> dict[str, np.ndarray]:
    """Meta-parameters with which a rule trains: its network passes on one Adam-like
    direction, and every other weight is small, random and acts."""
    arrays = {k: 0.1 * v for k, v in random_theta(name, seed=5).items()}
    if name == "star":  # its nominal part is one without the network
        return {
            k: 0.1 * v if k[:5] in ("net/w", "net/b") else v for k, v in arrays.items()
        }
    # The channel momentum / root second moment.
    adam = 6 if name in ("adafac_mlp", "mulo") else 7
    for prefix, gain in (("rule/", 10.0), ("net/", 5.0), ("bank/", 10.0)):
        if f"{prefix}w0" in arrays:
            w0, w1, w2 = (arrays[f"{prefix}w{i}"] for i in range(3))
            w0[..., adam, :2] += (1.0, -1.0)
            w1[..., :2, :2] += np.eye(2)
            w2[..., :2, 0] += (gain, -gain)
    if name == "velo":
        arrays["controls/b"] += 1.0
        arrays["head/b"] += 1.0
    elif "scheduler/head/b" in arrays:
        arrays["scheduler/head/b"] += np.float32(np.log(10.0))
    return arrays
