"""Results on disk: one JSON header and one npz of curves per run.

A run is (optimizer, task, seed) with all its learning rates; its key is a hash of
everything that determines it. Files are written aside and renamed, the header last
and with the checksum of the curves, so a run is either completely there or not at
all, and stores of different people can be merged by copying what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopax._core.atomic import atomic_write, make_folder
from lopax._core.errors import FileFormatError

FORMAT = 1


class Record(NamedTuple):
    """One stored run."""

    key: str
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Merge(NamedTuple):
    """What merging another store did."""

    copied: int
    present: int
    damaged: list[str]


class Store:
    """A folder of runs.

    **Arguments:**

    - `path`: the folder; made on the first write.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def status(self, key: str) -> str:
        """ "complete", "absent", or "damaged" (truncated, or edited by hand)."""
        if not self._header_path(key).exists():
            return "absent"
        try:
            self.get(key)
        except FileFormatError:
            return "damaged"
        return "complete"

    def get(self, key: str) -> Record:
        """Reads a run; raises `FileFormatError` if it is not complete and intact."""
        header = self._read_header(key)
        path = self._curves_path(key)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FileFormatError(
                f"{path}: the curves of run {key} cannot be read ({error}); "
                "run the grid again"
            ) from None
        if hashlib.sha256(data).hexdigest() != header["curves_sha256"]:
            raise FileFormatError(
                f"{path}: {len(data)} bytes whose checksum is not the one in the "
                f"header of run {key}; truncated or changed, run the grid again"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Record(key, header, arrays)

    def put(
        self, key: str, header: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> None:
        """Writes a run; an existing one with this key is replaced."""
        buffer = io.BytesIO()
        values: Any = {k: np.asarray(v) for k, v in arrays.items()}
        np.savez_compressed(buffer, **values)
        data = buffer.getvalue()
        full = {
            **header,
            "format": FORMAT,
            "key": key,
            "curves_sha256": hashlib.sha256(data).hexdigest(),
        }
        text = json.dumps(full, indent=1, sort_keys=True, allow_nan=False)
        make_folder(self.path)
        _write(self._curves_path(key), data)
        _write(self._header_path(key), text.encode())
        self._failure_path(key).unlink(missing_ok=True)

    def put_failure(self, key: str, header: Mapping[str, Any], message: str) -> None:
        """Notes that a run crashed; `put` with the same key removes the note."""
        make_folder(self.path)
        text = json.dumps({**header, "key": key, "error": message}, indent=1)
        _write(self._failure_path(key), text.encode())

    def failure(self, key: str) -> str | None:
        """Why the run crashed when it was last tried, if it did."""
        try:
            return str(json.loads(self._failure_path(key).read_text())["error"])
        except (OSError, ValueError, KeyError):
            return None

    def keys(self) -> Iterator[str]:
        """Keys of all runs that have a header, sorted."""
        yield from sorted(
            p.name.removesuffix(".run.json") for p in self.path.glob("*.run.json")
        )

    def identities(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Keys and identities of all runs; files that cannot be read are left out."""
        for key in self.keys():
            try:
                yield key, self._read_header(key)["identity"]
            except (FileFormatError, KeyError):
                continue

    def merge(self, other: Store) -> Merge:
        """Copies the runs of `other` that are not here; what is here stays."""
        copied, present, damaged = 0, 0, []
        for key in other.keys():  # noqa: SIM118 - Store is no mapping
            if self.status(key) == "complete":
                present += 1
                continue
            try:
                record = other.get(key)
            except FileFormatError:
                damaged.append(key)
                continue
            self.put(key, record.header, record.arrays)
            copied += 1
        return Merge(copied, present, damaged)

    def _read_header(self, key: str) -> dict[str, Any]:
        path = self._header_path(key)
        try:
            header = json.loads(path.read_text())
        except OSError as error:
            raise FileFormatError(f"{path}: no such run ({error})") from None
        except ValueError:
            raise FileFormatError(
                f"{path}: not valid JSON, probably truncated; run the grid again"
            ) from None
        found = header.get("format") if isinstance(header, dict) else None
        if found != FORMAT or "curves_sha256" not in header:
            raise FileFormatError(
                f"{path}: results of format {found!r}, this version reads {FORMAT}"
            )
        return header

    def _header_path(self, key: str) -> Path:
        return self.path / f"{key}.run.json"

    def _curves_path(self, key: str) -> Path:
        return self.path / f"{key}.npz"

    def _failure_path(self, key: str) -> Path:
        return self.path / f"{key}.failed.json"


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
