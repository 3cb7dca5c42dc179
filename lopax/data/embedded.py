"""Real data that ship with scikit-learn: always there, never downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lopax._core.errors import DatasetNotFound, MissingExtra
from lopax.data.types import ImageDataset, TextDataset, VectorDataset

TEST_FRACTION = 0.2
_SPLIT_SEED = 0


def digits() -> ImageDataset:
    """1,797 handwritten digits, 8x8 grey: 1,438 to train on, 359 to test on.

    Pixels 0..16 are stretched to 0..255. Source: UCI Optical Recognition of
    Handwritten Digits (Alpaydin & Kaynak, 1998).
    """
    bunch = _sklearn_datasets().load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    train, test = _split(len(images))
    labels = bunch.target.astype(np.int32)
    return ImageDataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        num_classes=10,
        class_names=tuple("0123456789"),
    )


def breast_cancer() -> VectorDataset:
    """569 tumours, 30 measurements each, two classes (Street et al., 1993)."""
    return _vectors("breast_cancer", _sklearn_datasets().load_breast_cancer())


def wine() -> VectorDataset:
    """178 wines, 13 measurements each, three growers (Forina et al., 1988)."""
    return _vectors("wine", _sklearn_datasets().load_wine())


def sklearn_descr() -> TextDataset:
    """The descriptions of scikit-learn's data sets, about 43 kB of English prose with
    some markup. Files follow one another by name; nine tenths train, a twentieth
    each valid and test. The exact text depends on scikit-learn's version."""
    folder = Path(_sklearn_datasets().__file__).parent / "descr"
    files = sorted(folder.glob("*.rst"))
    if not files:
        raise DatasetNotFound(
            f"data set 'sklearn_descr' was not found: no .rst files in {folder}. "
            "Reinstall scikit-learn: pip install --force-reinstall scikit-learn"
        )
    text = np.frombuffer(b"\n".join(f.read_bytes() for f in files), np.uint8)
    a, b = len(text) * 18 // 20, len(text) * 19 // 20
    return TextDataset(
        name="sklearn_descr", train=text[:a], valid=text[a:b], test=text[b:]
    )


def _vectors(name: str, bunch: Any) -> VectorDataset:
    train, test = _split(len(bunch.target))
    inputs = bunch.data.astype(np.float32)
    labels = bunch.target.astype(np.int32)
    return VectorDataset(
        name=name,
        train_inputs=inputs[train],
        train_labels=labels[train],
        test_inputs=inputs[test],
        test_labels=labels[test],
        num_classes=len(bunch.target_names),
    )


def _split(count: int) -> tuple[np.ndarray, np.ndarray]:
    # RandomState's stream is frozen by numpy's policy; Generator's is not.
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    cut = count - round(count * TEST_FRACTION)
    return order[:cut], order[cut:]


def _sklearn_datasets() -> Any:
    try:
        import sklearn.datasets
    except ImportError:
        raise MissingExtra("scikit-learn", "train", "the embedded data") from None
    return sklearn.datasets
