"""Arrays in files: safetensors with a JSON header, written atomically, checksummed.

One format for weights, optimizer states and meta-training checkpoints. The header
lives in the safetensors metadata under the key "lopax"; it holds the schema version
and a checksum over all arrays, so a damaged file is told from a foreign one. Neither
JAX nor torch is imported, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as _serialize

from lopax._core.atomic import atomic_write
from lopax._core.errors import FileFormatError
from lopax.pretrained import flax_msgpack

SCHEMA = 1


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

    The header gets `schema` and `checksum` (sha256 over names, dtypes, shapes and
    bytes).
    """
    ordered = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
    # ascontiguousarray turns 0-d arrays into 1-d ones; restore the shape.
    ordered = {k: v.reshape(np.shape(arrays[k])) for k, v in ordered.items()}
    full = {**header, "schema": SCHEMA, "checksum": checksum(ordered)}
    text = json.dumps(full, sort_keys=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(_serialize(ordered, {"lopax": text}))


def read_arrays(path: str | os.PathLike[str]) -> WeightsFile:
    """Reads a lopax safetensors file, or a published Flax-msgpack `theta.state`.

    Raises `FileFormatError` if the file is missing, truncated, damaged, newer than
    this version, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"no file at {path}")
    if path.suffix != ".safetensors":
        arrays = flax_msgpack.read(path)
        return WeightsFile({"format": "flax-msgpack", "file": path.name}, arrays)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not a readable safetensors file ({error}); it may be "
            "truncated. Fetch or write it again."
        ) from None
    if "lopax" not in metadata:
        raise FileFormatError(
            f"{path} is a safetensors file, but not one of lopax (no lopax header)"
        )
    header = json.loads(metadata["lopax"])
    if header.get("schema", 0) > SCHEMA:
        raise FileFormatError(
            f"{path} has schema {header['schema']}, this lopax reads up to {SCHEMA}: "
            "pip install -U lopax"
        )
    if header.get("checksum") != checksum(arrays):
        raise FileFormatError(f"{path} is damaged: its checksum does not match")
    return WeightsFile(header, arrays)


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
