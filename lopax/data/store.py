"""Data sets in files: where they are, how they are read, written and checked.

Images are `.npz` archives with `train_images`, `train_labels`, `test_images` and
`test_labels` (and optionally `class_names`); texts are gzip'd bytes in
`text/NAME.SPLIT.txt.gz`.
"""

from __future__ import annotations

import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lopax._core.atomic import atomic_write
from lopax._core.cache import cache_dir
from lopax._core.errors import DatasetNotFound, FileFormatError
from lopax.data.types import ImageDataset, TextDataset

ENVIRONMENT_VARIABLE = "LOPAX_DATA_DIR"
IMAGE_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
TEXT_SPLITS = ("train", "valid", "test")

_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def data_dir(override: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets live: `override`, else `LOPAX_DATA_DIR`, else the user's cache.

    The folder need not exist.
    """
    chosen = override or os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return cache_dir() / "data"


def find(
    name: str, folder: Path, candidates: Sequence[str], fetchable: bool = True
) -> Path:
    """The first of `candidates` that exists in `folder`.

    Raises `DatasetNotFound` with the places looked at and the ways to fix it.
    """
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    looked = "\n".join(f"  {folder / c}" for c in candidates)
    download = (
        f"or download it (needs pip install 'lopax[data]'):\n  lopax data fetch {name}"
    )
    raise DatasetNotFound(
        f"data set {name!r} was not found. Looked for:\n{looked}\n"
        "Either say where it is:\n"
        f"  export {ENVIRONMENT_VARIABLE}=/folder/with/the/files\n"
        + (download if fetchable else "or put your own copy there (gzip'd text).")
    )


def read_images(
    name: str, num_classes: int, folder: Path, candidates: Sequence[str]
) -> ImageDataset:
    """An image data set from the first candidate file that exists.

    Raises `DatasetNotFound`, or `FileFormatError` for a file that is truncated,
    corrupt, lacks an array or holds one of another kind.
    """
    path = find(name, folder, candidates)
    try:
        # np.load leaves a file it opened itself open if the archive is corrupt.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {
                k: archive[k] for k in (*IMAGE_KEYS, "class_names") if k in archive
            }
    except _UNREADABLE as error:
        raise FileFormatError(
            f"{path} cannot be read as an .npz archive ({type(error).__name__}: "
            f"{error}). Delete it and get it again: lopax data fetch {name}"
        ) from None
    missing = [k for k in IMAGE_KEYS if k not in found]
    if missing:
        raise FileFormatError(
            f"{path} lacks {', '.join(missing)}; an image data set has the arrays "
            + ", ".join(IMAGE_KEYS)
        )
    return check_images(str(path), name, num_classes, found)


def check_images(
    where: str, name: str, num_classes: int, arrays: Mapping[str, np.ndarray]
) -> ImageDataset:
    """An `ImageDataset` of checked arrays; raises `FileFormatError` naming `where`."""
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise FileFormatError(
                f"{where}: {split}_images is {images.dtype}{list(images.shape)}, "
                "must be uint8 [n, height, width, channels], no side of them 0"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise FileFormatError(
                f"{where}: {split}_labels is {labels.dtype}{list(labels.shape)}, must "
                f"be integers, one for each of the {len(images)} images"
            )
        if not len(labels):
            raise FileFormatError(f"{where}: the {split} split is empty")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise FileFormatError(
                f"{where}: {split}_labels range from {low} to {high}, must lie in "
                f"[0, {num_classes}) for {name!r}"
            )
    return ImageDataset(
        name=name,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"].astype(np.int32),
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"].astype(np.int32),
        num_classes=num_classes,
        class_names=tuple(str(n) for n in arrays.get("class_names", ())),
    )


def text_file(name: str, split: str) -> str:
    """The path of a text split below the data folder."""
    return f"text/{name}.{split}.txt.gz"


def read_text(
    name: str,
    folder: Path,
    stem: str = "",
    splits: Sequence[str] = TEXT_SPLITS,
    fetchable: bool = True,
) -> TextDataset:
    """A text data set.

    **Arguments:**

    - `splits`: which file serves as train, valid and test. One file for train and
      valid is cut: its last tenth is valid.

    Raises `DatasetNotFound`, or `FileFormatError` for a file that is truncated,
    corrupt or empty.
    """
    parts = {}
    for role, split in zip(TEXT_SPLITS, splits, strict=True):
        path = find(name, folder, [text_file(stem or name, split)], fetchable)
        try:
            raw = gzip.decompress(path.read_bytes())
        except _UNREADABLE as error:
            raise FileFormatError(
                f"{path} cannot be read as gzip ({type(error).__name__}: {error}). "
                "Delete it and get it again"
                + (f": lopax data fetch {name}" if fetchable else "")
            ) from None
        if not raw:
            raise FileFormatError(f"{path} holds no text")
        parts[role] = np.frombuffer(raw, np.uint8)
    if splits[0] == splits[1]:
        cut = len(parts["train"]) * 9 // 10
        parts["train"], parts["valid"] = parts["train"][:cut], parts["train"][cut:]
    return TextDataset(name=name, **parts)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an archive so that `path` is never half-written."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]


def write_text(path: Path, text: bytes) -> None:
    """Writes gzip'd bytes so that `path` is never half-written."""
    packed = gzip.compress(text, mtime=0)
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed)
