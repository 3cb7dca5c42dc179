"""An image classifier with augmentation.

    python examples/torch_vision.py [--compare] [--steps 400]
    MODEL=resnet10t python examples/torch_vision.py       # any model of timm, by name

Images are Fashion-MNIST if it is under LOPAX_DATA_DIR (`lopax data fetch
fashion_mnist`), else scikit-learn's digits. Each is shifted by up to two pixels and has
a random square erased, anew every time.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch_judging import example

from lopax import data
from lopax._core.errors import DatasetNotFound

BATCH = 64


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images [n, 1, h, w] in [0, 1] and labels [n], then held-out ones."""
    try:
        found: Any = data.load("fashion_mnist")
    except DatasetNotFound:
        found = data.load("digits")

    def pixels(x: Any) -> torch.Tensor:
        grey = torch.tensor(x).float().mean(-1, keepdim=True).permute(0, 3, 1, 2)
        return nn.functional.adaptive_avg_pool2d(grey, min(14, x.shape[1])) / x.max()

    train = pixels(found.train_images), torch.tensor(found.train_labels).long()
    test = pixels(found.test_images[:2_000]), torch.tensor(found.test_labels[:2_000])
    return *train, test[0], test[1].long()


def augmented(x: torch.Tensor) -> torch.Tensor:
    """Shifted by up to two pixels, a square of 3 x 3 erased; [n, 1, h, w]."""
    n, _, height, width = x.shape
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    rows = torch.randint(5, (n, 1)) + torch.arange(height)
    columns = torch.randint(5, (n, 1)) + torch.arange(width)
    which = torch.arange(n)[:, None, None]
    x = padded[which, 0, rows[:, :, None], columns[:, None, :]]
    at = torch.randint(height - 2, (n, 2, 1)) + torch.arange(3)
    x[which, at[:, 0, :, None], at[:, 1, None, :]] = 0.0
    return x[:, None]


def network() -> nn.Module:
    """A model of timm named by the variable MODEL, else a small one."""
    if "MODEL" in os.environ:
        import timm

        return timm.create_model(os.environ["MODEL"], num_classes=10, in_chans=1)
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


def train(make: Any, steps: int, say: Any) -> float:
    """Returns the share of held-out images that are classified wrongly."""
    x, y, test_x, test_y = images()
    model = network()
    optimizer = make(model)
    for step in range(steps):
        picks = torch.randint(len(y), (BATCH,))
        loss = nn.functional.cross_entropy(model(augmented(x[picks])), y[picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 50 == 0 or step == steps - 1:
            say(f"step {step:4d}  loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        return (model(test_x).argmax(1) != test_y).float().mean().item()


if __name__ == "__main__":
    example(str(__doc__), train, steps=400, unit="held-out error")
