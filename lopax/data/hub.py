"""Getting data sets from the Hugging Face hub into `LOPAX_DATA_DIR`.

Only `fetch` touches the network (through the package `datasets`, extra `data`); the
conversions are pure functions of rows.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lopax._core.errors import ConfigError, FileFormatError, MissingExtra
from lopax.data import store
from lopax.data.registry import DATASETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSource:
    """Where a data set lives on the hub, and what its columns are called."""

    repository: str
    configuration: str | None = None
    revision: str | None = None
    image: str = "image"
    label: str = "label"
    text: str = "text"
    num_classes: int = 10


IMAGE_SOURCES: dict[str, HubSource] = {
    "mnist": HubSource(repository="ylecun/mnist"),
    "fashion_mnist": HubSource(repository="zalando-datasets/fashion_mnist"),
    "cifar10": HubSource(repository="uoft-cs/cifar10", image="img"),
    "cifar100": HubSource(
        repository="uoft-cs/cifar100", image="img", label="fine_label", num_classes=100
    ),
    "svhn": HubSource(repository="ufldl-stanford/svhn", configuration="cropped_digits"),
}
TEXT_SOURCES: dict[str, HubSource] = {
    "wikitext2": HubSource(
        repository="Salesforce/wikitext", configuration="wikitext-2-raw-v1"
    ),
    # The repository itself holds a loading script, which `datasets` no longer runs;
    # the hub keeps its own conversion to Parquet on this branch.
    "tinyshakespeare": HubSource(
        repository="karpathy/tiny_shakespeare", revision="refs/convert/parquet"
    ),
}
_SAME_FILES = {"cifar100_coarse10": "cifar100", "wikitext2_valid": "wikitext2"}
_TEXT_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def fetch(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    load_dataset: Callable[..., Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Downloads a data set and writes its files; returns their paths.

    Files are written whole or not at all. Files that exist are kept unless
    `overwrite`.

    **Arguments:**

    - `load_dataset`: what to call instead of `datasets.load_dataset`; it takes a
      repository, a configuration and `revision=`, and returns rows by split.

    Raises `UnknownName`, `ConfigError` for a data set that is embedded or has no
    source on the hub, `MissingExtra` without the package `datasets`, and
    `FileFormatError` if the rows are not what was expected.
    """
    entry = DATASETS[name]
    source_name = _SAME_FILES.get(name, name)
    if entry.embedded:
        raise ConfigError(
            f"data set {name!r} ships with scikit-learn: nothing to fetch"
        )
    folder = store.data_dir(data_dir)
    if source_name in IMAGE_SOURCES:
        source, paths = IMAGE_SOURCES[source_name], [folder / f"{source_name}.npz"]
    elif source_name in TEXT_SOURCES:
        source = TEXT_SOURCES[source_name]
        paths = [folder / store.text_file(source_name, s) for s in store.TEXT_SPLITS]
    else:
        wanted = "\n".join(f"  {folder / f}" for f in entry.files[0])
        raise ConfigError(
            f"data set {name!r} has no source on the hub. Put your own copy, plain "
            f"text compressed with gzip, here:\n{wanted}"
        )
    if not overwrite and all(p.is_file() for p in paths):
        return paths
    loader = load_dataset or _hub_loader()
    rows = loader(source.repository, source.configuration, revision=source.revision)
    if source_name in IMAGE_SOURCES:
        arrays = convert_images(rows, source)
        store.check_images(source.repository, name, source.num_classes, arrays)
        store.write_npz(paths[0], arrays)
        return paths
    texts = [
        convert_text(_rows_of(rows, _TEXT_SPLITS[s], source), source)
        for s in store.TEXT_SPLITS
    ]
    for path, text in zip(paths, texts, strict=True):
        store.write_text(path, text)
    return paths


def convert_images(rows: Mapping[str, Any], source: HubSource) -> dict[str, np.ndarray]:
    """Rows of labelled images as the arrays of an `.npz` data set.

    **Arguments:**

    - `rows`: by split ("train", "test"), an iterable of mappings with an image
      (anything `np.asarray` turns into uint8 [h, w] or [h, w, c]) and a label.

    Raises `FileFormatError` if a split or a column is missing, an image is not of
    8-bit pixels, or images differ in shape.
    """
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        split_rows = _rows_of(rows, split, source)
        images, labels = [], []
        for i, row in enumerate(split_rows):
            where = f"{source.repository}, {split} row {i}"
            image = np.asarray(_cell(row, source.image, where))
            image = image[..., None] if image.ndim == 2 else image
            if image.dtype != np.uint8 or image.ndim != 3:
                raise FileFormatError(
                    f"{where}: image is {image.dtype}{list(image.shape)}, must be "
                    "uint8 [height, width] or [height, width, channels]"
                )
            if images and image.shape != images[0].shape:
                raise FileFormatError(
                    f"{where}: image has shape {list(image.shape)}, the first one "
                    f"has {list(images[0].shape)}"
                )
            images.append(image)
            labels.append(int(_cell(row, source.label, where)))
        if not images:
            raise FileFormatError(f"{source.repository}: split {split!r} is empty")
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.asarray(labels, np.uint8)
    names = _class_names(rows["train"], source.label)
    if names:
        arrays["class_names"] = np.asarray(names)
    return arrays


def convert_text(rows: Iterable[Mapping[str, Any]], source: HubSource) -> bytes:
    """The rows' text, one behind the other, as UTF-8 bytes.

    Raises `FileFormatError` if the column is missing or there is no text.
    """
    where = source.repository
    text = "".join(str(_cell(row, source.text, where)) for row in rows).encode()
    if not text:
        raise FileFormatError(f"{where}: no text in column {source.text!r}")
    return text


def _rows_of(rows: Mapping[str, Any], split: str, source: HubSource) -> Any:
    if split not in rows:
        raise FileFormatError(
            f"{source.repository} has no split {split!r}, only {', '.join(rows)}"
        )
    return rows[split]


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise FileFormatError(
            f"{where}: no column {column!r}; there are {', '.join(row)}"
        )
    return row[column]


def _class_names(rows: Any, label: str) -> list[str]:
    """Class names, if the rows know them (as `datasets` does)."""
    features = getattr(rows, "features", None) or {}
    return list(getattr(features.get(label), "names", None) or [])


def _hub_loader() -> Callable[..., Any]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "data", "fetching data sets") from None
    return datasets.load_dataset
