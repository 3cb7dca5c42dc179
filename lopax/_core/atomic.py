"""Files that are either completely there or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_LEFTOVER = re.compile(r"\..+\.\w{8}\.tmp")  # as `atomic_write` names them


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block succeeds.

    The file is flushed to disk before the rename, so that after a crash at any moment
    `path` holds either the old content or the new, never a part. A failed block leaves
    nothing behind. A device or a pipe (`/dev/stdout`) is written directly.
    """
    target = Path(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:  # of the file the caller knows
        raise type(error)(error.errno, error.strerror, str(target)) from None
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Deletes the temporary files that killed processes left in a folder; for its only
    writer."""
    for path in Path(folder).glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
