"""Arrays in files: safetensors with a JSON header, written atomically, checksummed.

One format for weights, optimizer states and meta-training checkpoints. The safetensors
metadata holds two entries: "lopax", the header as JSON, and "checksum", a sha256 over
that text and over all arrays, so that a change of any byte is noticed, also one in the
saved settings. Neither JAX nor torch is imported, and nothing is ever unpickled.

Files of schema 1 had the checksum in the header, over the arrays only. They are still
read, with what can be checked of their header.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as _serialize

from lopax._core.atomic import atomic_write
from lopax._core.errors import ConfigError, FileFormatError, NonFiniteTheta
from lopax.pretrained import flax_msgpack

SCHEMA = 2


class WeightsFile(NamedTuple):
    """What a file held."""

    header: dict[str, Any]  # architecture, config, recipe, licence, ...
    arrays: dict[str, np.ndarray]  # path name -> array


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    header: Mapping[str, Any],
) -> None:
    """Writes named arrays and a JSON-serialisable header, atomically.

    The header gets `schema`; the checksum is stored beside it. Raises `ConfigError` if
    the header cannot be written as JSON (NaN and infinity are none), `NotWritable`.
    """
    ordered = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
    # ascontiguousarray turns 0-d arrays into 1-d ones; restore the shape.
    ordered = {k: v.reshape(np.shape(arrays[k])) for k, v in ordered.items()}
    try:
        text = json.dumps({**header, "schema": SCHEMA}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the header of {path} is not JSON: {error}") from None
    metadata = {"lopax": text, "checksum": checksum(ordered, text)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(_serialize(ordered, metadata))


def read_arrays(path: str | os.PathLike[str]) -> WeightsFile:
    """Reads a lopax safetensors file, or a published Flax-msgpack `theta.state`.

    The header has the file's checksum as its entry "checksum". Raises
    `FileFormatError` if the file is missing, unreadable, truncated, damaged, newer
    than this version, or of another kind.
    """
    path = Path(path)
    try:
        found = path.is_file()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    if not found:
        raise FileFormatError(f"no file at {path}")
    if path.suffix != ".safetensors" and not _looks_like_safetensors(path):
        arrays = flax_msgpack.read(path)
        return WeightsFile({"format": "flax-msgpack", "file": path.name}, arrays)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    # What the parser raises for foreign bytes is its own affair.
    except Exception as error:
        raise FileFormatError(
            f"{path} is not a readable safetensors file ({error}); it may be "
            "truncated. Fetch or write it again."
        ) from None
    if "lopax" not in metadata:
        raise FileFormatError(
            f"{path} is a safetensors file, but not one of lopax (no lopax header)"
        )
    return WeightsFile(_header(path, metadata, arrays), arrays)


def _looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins as that format does: a length, then a JSON object."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None


def settings_of(file: WeightsFile) -> tuple[str | None, dict[str, Any]]:
    """The architecture a weights file is for and its saved settings; (None, {}) for
    published files, which do not say.

    Raises `FileFormatError` for a file of lopax that lacks one of them (a checkpoint,
    an optimizer state, or weights with a damaged header).
    """
    header = file.header
    if header.get("format") == "flax-msgpack":
        return None, {}
    name, config = header.get("architecture"), header.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        kind = header.get("kind", "something else, or damaged weights")
        raise FileFormatError(
            "the file holds no weights: its header has no architecture with its "
            f"settings (it is a {kind})"
        )
    return name, config


def check_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raises `NonFiniteTheta`, naming the first arrays, if a number in them is not
    finite."""
    bad = [k for k, v in arrays.items() if not np.isfinite(np.asarray(v)).all()]
    if bad:
        raise NonFiniteTheta(
            f"{what}: not all numbers are finite in {', '.join(bad[:3])}"
            f"{' and others' if bad[3:] else ''}. A meta-training that diverged? For "
            "research on such a theta: lopax.load_theta(..., allow_nonfinite=True), "
            "lopax.save_theta(..., allow_nonfinite=True)"
        )


def checksum(arrays: Mapping[str, np.ndarray], text: str | None = None) -> str:
    """sha256 over the header's text (None in schema 1), then names, dtypes, shapes and
    bytes in sorted order of names."""
    digest = hashlib.sha256()
    if text is not None:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(f"header|{len(encoded)}|".encode() + encoded)
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(
            f"{name}|{array.dtype.str}|{array.shape}|".encode("utf-8", "surrogatepass")
        )
        digest.update(array.tobytes())
    return digest.hexdigest()


def _header(
    path: Path, metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The verified header, with the checksum as an entry."""
    text = metadata["lopax"]
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path} is damaged: its header is not JSON ({error})"
        ) from None
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} is damaged: its header is not a JSON object")
    schema = header.get("schema")
    if type(schema) is not int or schema < 1:
        raise FileFormatError(f"{path} is damaged: its header has no schema version")
    if schema > SCHEMA:
        raise FileFormatError(
            f"{path} has schema {schema}, this lopax reads up to {SCHEMA}: "
            "pip install -U lopax"
        )
    if schema == 1:
        found, expected = header.get("checksum"), checksum(arrays)
    else:
        found, expected = metadata.get("checksum"), checksum(arrays, text)
        if extra := sorted(set(metadata) - {"lopax", "checksum"}):
            raise FileFormatError(f"{path} is damaged: it has unknown entries {extra}")
    if found != expected:
        raise FileFormatError(f"{path} is damaged: its checksum does not match")
    return {**header, "checksum": expected}
