"""Optimizers on a game without a lower bound: a Wasserstein GAN on a ring, in PyTorch.

    python benchmarks/ring_gan.py [--optimizers learned_muon@0.1 adam@0.003] [--seeds 3]

Eight normal distributions (standard deviation 0.1) on a circle of radius 2; generator
and critic with two layers of 64 units, the critic's weights clipped to 0.1, batches of
128, 1,200 steps of each in turn (Arjovsky et al., 2017, arXiv 1701.07875). A number
after @ is a learning rate, of a learned optimizer the factor `lr`. Value: Wasserstein
distance of 4,000 samples to the data, the mean over 64 directions; in the case's name,
how many modes have at least 2 % of the samples within 0.5.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings

import torch
from harness import Result, finish
from torch import Tensor, nn

import lopax.torch as lt

OPTIMIZERS = (
    "learned_muon@0.1 learned_muon celo2 celo_adam celo "
    "adam@0.0003 adam@0.001 adam@0.003 rmsprop@0.0005"
)
MODES, STEPS, BATCH, CLIP = 8, 1200, 128, 0.1


def centres() -> Tensor:
    angles = torch.arange(MODES) * (2 * math.pi / MODES)
    return 2.0 * torch.stack([angles.cos(), angles.sin()], dim=1)


def data(number: int) -> Tensor:
    which = torch.randint(MODES, (number,))
    return centres()[which] + 0.1 * torch.randn(number, 2)


def network(inputs: int, outputs: int) -> nn.Module:
    hidden = [nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def optimizer_of(spec: str, model: nn.Module) -> torch.optim.Optimizer:
    name, _, rate = spec.partition("@")
    if name == "adam":
        return torch.optim.Adam(model.parameters(), float(rate), betas=(0.5, 0.9))
    if name == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), float(rate))
    named = model.named_parameters()
    return lt.optimizer(name, named, num_steps=STEPS, lr=float(rate or 1.0))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    if isinstance(optimizer, lt.LearnedOptimizer):
        optimizer.step(loss=loss)
    else:
        optimizer.step()


def samples(spec: str, seed: int) -> Tensor:
    """[4000, 2] of the generator after training."""
    torch.manual_seed(seed)
    generator, critic = network(8, 2), network(2, 1)
    moves = optimizer_of(spec, generator)
    answers = optimizer_of(spec, critic)
    for _ in range(STEPS):
        made = generator(torch.randn(BATCH, 8))
        loss = critic(made.detach()).mean() - critic(data(BATCH)).mean()
        descend(answers, loss)
        with torch.no_grad():
            for p in critic.parameters():
                p.clamp_(-CLIP, CLIP)
        descend(moves, -critic(made).mean())
    with torch.no_grad():
        return generator(torch.randn(4000, 8))


def distance(found: Tensor, wanted: Tensor) -> float:
    """Wasserstein-1 distance, the mean over fixed directions."""
    fixed = torch.Generator().manual_seed(7)
    directions = torch.randn(64, 2, generator=fixed)
    directions /= directions.norm(dim=1, keepdim=True)
    sides = [(x @ directions.T).sort(0).values for x in (found, wanted)]
    return float((sides[0] - sides[1]).abs().mean())


def modes(found: Tensor) -> int:
    nearest = torch.cdist(found, centres()).min(1)
    close = nearest.indices[nearest.values < 0.5]
    return int((torch.bincount(close, minlength=MODES) > 0.02 * len(found)).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS.split())
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", lt.GrowthWarning)
    warnings.simplefilter("ignore", lt.StepSizeWarning)
    results = []
    for spec in args.optimizers:
        for seed in range(args.seeds):
            found = samples(spec, seed)
            results.append(
                Result(
                    benchmark="ring_gan",
                    case=f"{spec}, seed {seed}, {modes(found)} modes",
                    metric="sliced Wasserstein distance",
                    value=distance(found, data(len(found))),
                )
            )
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
