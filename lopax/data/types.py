"""What a loaded data set is: plain numpy arrays in a frozen record."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """Labelled images as they come from the source, before any preparation.

    Labels lie in [0, num_classes).
    """

    name: str
    train_images: UInt8[np.ndarray, "n h w c"]
    train_labels: Int[np.ndarray, " n"]
    test_images: UInt8[np.ndarray, "m h w c"]
    test_labels: Int[np.ndarray, " m"]
    num_classes: int
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VectorDataset:
    """Labelled feature vectors in the source's own units."""

    name: str
    train_inputs: Float[np.ndarray, "n f"]
    train_labels: Int[np.ndarray, " n"]
    test_inputs: Float[np.ndarray, "m f"]
    test_labels: Int[np.ndarray, " m"]
    num_classes: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextDataset:
    """Running text as bytes."""

    name: str
    train: UInt8[np.ndarray, " n"]
    valid: UInt8[np.ndarray, " m"]
    test: UInt8[np.ndarray, " k"]


Dataset: TypeAlias = ImageDataset | VectorDataset | TextDataset
"""What `load` returns."""
