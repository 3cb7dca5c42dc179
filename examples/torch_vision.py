"""A small convolutional network on handwritten digits, in PyTorch, with Celo.

    python examples/torch_vision.py [--optimizer celo] [--steps 600]

There is no learning rate to choose: the rule is told how long the run is and sees the
loss. Nothing here needs JAX.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import lopax.torch


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 real digits of 8 x 8 pixels: images [n, 1, 8, 8] and labels [n]."""
    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16.0
    return images, torch.tensor(digits.target)[order]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--optimizer", default="celo", choices=lopax.torch.RULES.names()
    )
    parser.add_argument("--weights", help="a weights file instead of the bundled ones")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()

    images, labels = data()
    train, test = slice(0, 1500), slice(1500, None)
    torch.manual_seed(0)
    model = network()
    optimizer = lopax.torch.optimizer(
        args.optimizer,
        model.named_parameters(),
        num_steps=args.steps,
        weights=args.weights,
    )
    for step in range(args.steps):
        picks = torch.randint(1500, (128,))
        loss = nn.functional.cross_entropy(
            model(images[train][picks]), labels[train][picks]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 100 == 0 or step == args.steps - 1:
            scale = optimizer.info().step_scale.item()
            print(f"step {step:4d}  loss {loss.item():.4f}  step scale {scale:.2e}")
    with torch.no_grad():
        right = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"accuracy on {len(labels[test])} held-out digits: {right.item():.1%}")


if __name__ == "__main__":
    main()
