"""The table of data sets and `load`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lopax._core.registry import Registry
from lopax.data import embedded, store
from lopax.data.coarse import regroup
from lopax.data.types import Dataset, ImageDataset

_CIFAR100 = ("cifar100.npz", "cifar100_subset.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """How a data set is read and what it needs."""

    kind: str
    """"image", "vector" or "text"."""
    read: Callable[[Path], Dataset]
    about: str
    files: tuple[tuple[str, ...], ...] = ()
    """Alternatives, each a set of files that suffices; empty for embedded sets."""

    @property
    def embedded(self) -> bool:
        return not self.files


def _image_file(name: str, num_classes: int, about: str) -> DatasetEntry:
    files = (f"{name}.npz",)

    def read(folder: Path) -> Dataset:
        return store.read_images(name, num_classes, folder, files)

    return DatasetEntry(kind="image", read=read, about=about, files=(files,))


def _text_files(
    name: str,
    about: str,
    *,
    stem: str = "",
    splits: tuple[str, ...] = store.TEXT_SPLITS,
    fetchable: bool = True,
) -> DatasetEntry:
    files = tuple(store.text_file(stem or name, s) for s in dict.fromkeys(splits))
    read = partial(store.read_text, name, stem=stem, splits=splits, fetchable=fetchable)
    return DatasetEntry(kind="text", read=read, about=about, files=(files,))


def _cifar100(folder: Path) -> ImageDataset:
    return store.read_images("cifar100", 100, folder, _CIFAR100)


def _cifar100_coarse10(folder: Path) -> ImageDataset:
    return regroup(store.read_images("cifar100", 100, folder, _CIFAR100))


DATASETS: Registry[DatasetEntry] = Registry("data set")
"""Every data set by name: how it is read, what it is."""

for _name, _kind, _read, _about in (
    ("digits", "image", embedded.digits, "8x8 handwritten digits (scikit-learn)"),
    ("breast_cancer", "vector", embedded.breast_cancer, "30 features, 2 classes"),
    ("wine", "vector", embedded.wine, "13 features, 3 classes"),
    ("sklearn_descr", "text", embedded.sklearn_descr, "scikit-learn's descriptions"),
):
    DATASETS.add(
        _name,
        DatasetEntry(kind=_kind, read=lambda _, read=_read: read(), about=_about),
    )
DATASETS.add("mnist", _image_file("mnist", 10, "28x28 handwritten digits"))
DATASETS.add("fashion_mnist", _image_file("fashion_mnist", 10, "28x28 clothing"))
DATASETS.add("cifar10", _image_file("cifar10", 10, "32x32 photographs"))
DATASETS.add("svhn", _image_file("svhn", 10, "32x32 house numbers, cropped"))
for _name, _read, _about in (
    ("cifar100", _cifar100, "32x32 photographs, 100 fine classes"),
    ("cifar100_coarse10", _cifar100_coarse10, "CIFAR-100 in ten groups of classes"),
):
    DATASETS.add(
        _name,
        DatasetEntry(
            kind="image",
            read=_read,
            about=_about,
            files=tuple((f,) for f in _CIFAR100),
        ),
    )
DATASETS.add("tinyshakespeare", _text_files("tinyshakespeare", "1 MB of Shakespeare"))
DATASETS.add(
    "war_and_peace", _text_files("war_and_peace", "3 MB of Tolstoy", fetchable=False)
)
DATASETS.add("wikitext2", _text_files("wikitext2", "Wikipedia articles"))
DATASETS.add(
    "wikitext2_valid",
    _text_files(
        "wikitext2_valid",
        "WikiText-2's valid file to train on (not a WikiText-2 result)",
        stem="wikitext2",
        splits=("valid", "valid", "test"),
    ),
)


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set called `name`, as numpy arrays.

    **Arguments:**

    - `data_dir`: folder with the files; default `LOPAX_DATA_DIR`, else the user's
      cache. Embedded sets (`digits`, `breast_cancer`, `wine`, `sklearn_descr`) need
      none.

    Raises `UnknownName` (with near matches), `DatasetNotFound` (where it looked and
    the command that fetches it), `FileFormatError` for a corrupt file.
    """
    return DATASETS[name].read(store.data_dir(data_dir))


def list_datasets(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, present on this machine or not."""
    return DATASETS.names(pattern)


def available(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether `load(name)` would find its files; reads none of them."""
    entry = DATASETS[name]
    if entry.embedded:
        return importlib.util.find_spec("sklearn") is not None
    folder = store.data_dir(data_dir)
    return any(all((folder / f).is_file() for f in files) for files in entry.files)
