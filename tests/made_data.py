"""Small random image data sets, for the tests of data and tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from lopax.data import ImageDataset, store


def arrays(
    n: int = 20,
    m: int = 10,
    size: int = 6,
    channels: int = 3,
    classes: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """The arrays of an archive: `n` training and `m` test images of `size` pixels."""
    rng = np.random.default_rng(seed)
    shape = (size, size, channels)
    return {
        "train_images": rng.integers(0, 256, (n, *shape), np.uint8),
        "train_labels": rng.integers(0, classes, n, np.uint8),
        "test_images": rng.integers(0, 256, (m, *shape), np.uint8),
        "test_labels": rng.integers(0, classes, m, np.uint8),
    }


def images(name: str = "made_up", classes: int = 10, **sizes: int) -> ImageDataset:
    """The same as a loaded data set."""
    return store.check_images("memory", name, classes, arrays(**sizes))
