"""From raw images to what networks are fed: resized, scaled, split.

The recipe of the published meta-training tasks: bilinear resize without antialiasing
(half-pixel centres, TensorFlow's default), division by 255, grey as the mean over
channels. No standardisation and no augmentation.
"""

from __future__ import annotations

import dataclasses
import os
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from lopax._core.errors import ConfigError
from lopax.data import store
from lopax.data.registry import load
from lopax.data.types import ImageDataset, VectorDataset

SPLITS = ("train", "valid", "extra_valid", "test")
"""The parts of a data set; texts have no extra_valid."""

PUBLISHED_ONE_PERCENT = ("svhn", "cifar100")
"""Data sets of which the published code trains on the first 1 per cent only."""

_CHUNK = 4096
LARGEST_SIDE = 4096
"""Pixels; more is a mistake that would only be told by running out of memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """One split. Inputs are float32, labels int32."""

    inputs: Float[np.ndarray, " n *shape"]
    labels: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreparedDataset:
    """A data set ready for training, in four disjoint splits.

    Of the source's train part, in its order, the first 80 per cent are `train`, the
    next ten `valid`, the last ten `extra_valid`; `test` is the source's test part.
    """

    name: str
    num_classes: int
    train: Examples
    valid: Examples
    extra_valid: Examples
    test: Examples

    def split(self, name: str) -> Examples:
        """Raises `ConfigError` unless `name` is one of `SPLITS`."""
        if name not in SPLITS:
            raise ConfigError(f"split = {name!r}: must be one of {', '.join(SPLITS)}")
        return getattr(self, name)


def prepare(
    dataset: str | ImageDataset,
    size: int | None = 8,
    grey: bool = True,
    *,
    published_one_percent: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
) -> PreparedDataset:
    """Images [n, size, size, c] float32 in [0, 1], c = 1 if grey; labels [n] int32.

    Results for data sets given by name are kept in memory; treat them as read-only.

    **Arguments:**

    - `dataset`: a name or a loaded data set.
    - `size`: side length after resizing; None keeps the native size.
    - `published_one_percent`: on SVHN and CIFAR-100, keep only the first 1 per cent
      of the source as `train`, as the published code does by accident (it computes
      the percentage with min(1, .) where it meant max). No effect on other sets.

    Raises `ConfigError` for a size below one or a data set that is not of images, and
    what `load` raises.
    """
    if size is not None and size < 1:
        raise ConfigError(f"size = {size!r}: must be at least 1, or None")
    if isinstance(dataset, str):
        folder = str(store.data_dir(data_dir))
        return _prepare_named(dataset, size, grey, published_one_percent, folder)
    if not isinstance(dataset, ImageDataset):
        raise ConfigError(f"{type(dataset).__name__}: prepare() takes image data sets")
    one_percent = published_one_percent and dataset.name in PUBLISHED_ONE_PERCENT
    return _split(
        dataset.name,
        dataset.num_classes,
        (resize(dataset.train_images, size, grey), dataset.train_labels),
        (resize(dataset.test_images, size, grey), dataset.test_labels),
        train_share=0.01 if one_percent else 0.8,
    )


def prepare_vectors(dataset: str | VectorDataset) -> PreparedDataset:
    """Feature vectors [n, f] float32, standardised with the mean and the standard
    deviation of the `train` split.

    Raises `ConfigError` for a data set that is not of vectors.
    """
    data = load(dataset) if isinstance(dataset, str) else dataset
    if not isinstance(data, VectorDataset):
        raise ConfigError(f"{data.name!r}: prepare_vectors() takes vector data sets")
    first = data.train_inputs[: round(0.8 * len(data.train_inputs))]
    mean, std = first.mean(axis=0), first.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return _split(
        data.name,
        data.num_classes,
        (((data.train_inputs - mean) / std).astype(np.float32), data.train_labels),
        (((data.test_inputs - mean) / std).astype(np.float32), data.test_labels),
        train_share=0.8,
    )


def resize(images: np.ndarray, size: int | None, grey: bool) -> np.ndarray:
    """uint8 [n, h, w, c] to float32 [n, size, size, 1 or c] in [0, 1].

    Works through the images in chunks, so that the temporary memory does not grow
    with their number. Raises `ConfigError` for a size beyond `LARGEST_SIDE`.
    """
    if size and not 1 <= size <= LARGEST_SIDE:
        raise ConfigError(f"size = {size}: must be 1 to {LARGEST_SIDE} pixels")
    n, height, width, channels = images.shape
    rows, columns = size or height, size or width
    out = np.empty((n, rows, columns, 1 if grey else channels), np.float32)
    for start in range(0, n, _CHUNK):
        chunk = images[start : start + _CHUNK]
        part = _lerp(_lerp(chunk, rows, axis=1), columns, axis=2) / np.float32(255.0)
        if grey:
            part = part.mean(axis=-1, keepdims=True, dtype=np.float32)
        out[start : start + _CHUNK] = part
    return out


def _lerp(images: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along one axis at half-pixel centres, without antialiasing:
    each output pixel mixes two neighbours however strong the reduction is."""
    length = images.shape[axis]
    if size == length:
        return images.astype(np.float32)
    source = (np.arange(size) + 0.5) * (length / size) - 0.5
    floor = np.floor(source)
    low = np.clip(floor, 0, length - 1).astype(np.intp)
    high = np.clip(floor + 1, 0, length - 1).astype(np.intp)
    shape = [1] * images.ndim
    shape[axis] = size
    weight = (source - floor).astype(np.float32).reshape(shape)
    a = images.take(low, axis=axis).astype(np.float32)
    b = images.take(high, axis=axis).astype(np.float32)
    return a + (b - a) * weight


@lru_cache(maxsize=8)
def _prepare_named(
    name: str, size: int | None, grey: bool, one_percent: bool, folder: str
) -> PreparedDataset:
    dataset = load(name, data_dir=folder)
    if not isinstance(dataset, ImageDataset):
        raise ConfigError(f"{name!r} is not an image data set")
    return prepare(dataset, size, grey, published_one_percent=one_percent)


def _split(
    name: str,
    num_classes: int,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    train_share: float,
) -> PreparedDataset:
    inputs, labels = train
    n = len(inputs)
    used, a, b = (round(x * n) for x in (train_share, 0.8, 0.9))
    if not 0 < used <= a < b < n:
        raise ConfigError(f"{name!r}: {n} training examples are too few to split")
    return PreparedDataset(
        name=name,
        num_classes=num_classes,
        train=Examples(inputs[:used], labels[:used]),
        valid=Examples(inputs[a:b], labels[a:b]),
        extra_valid=Examples(inputs[b:], labels[b:]),
        test=Examples(*test),
    )
