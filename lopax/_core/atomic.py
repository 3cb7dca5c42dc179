"""Files that are either completely there or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from lopax._core.errors import LopaxError, NotWritable

_LEFTOVER = re.compile(r"\..+\.\w{8}\.tmp")  # as `atomic_write` names them


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block succeeds.

    The file is flushed to disk before the rename, so that after a crash at any moment
    `path` holds either the old content or the new, never a part. A failed block leaves
    nothing behind. A device or a pipe (`/dev/stdout`) is written directly.

    Raises `NotWritable`, also for what the block could not write.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    with _writing(target, target, temporary):
        if target.exists() and not (target.is_file() or target.is_dir()):
            yield target
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with those it lies in if it is not there. Raises
    `NotWritable`."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises `NotWritable` for the block's errors of the system about `path`."""
    with _writing(path, path):
        yield


@contextlib.contextmanager
def _writing(
    path: str | os.PathLike[str], *own: str | os.PathLike[str]
) -> Iterator[None]:
    """`writing`, for errors about nothing, one of the paths `own` or a folder that one
    of them lies in."""
    try:
        yield
    except (LopaxError, BrokenPipeError):
        raise
    except OSError as error:
        about = error.filename
        inside = [os.fspath(p) for p in own]
        if about is None or any(_lies_in(p, os.fsdecode(about)) for p in inside):
            raise NotWritable.of(path, error) from error
        raise


def _lies_in(path: str, folder: str) -> bool:
    """Whether this is the folder or in it."""
    return path == folder or Path(folder) in Path(path).parents


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Deletes the temporary files that killed processes left in a folder; for its only
    writer."""
    for path in Path(folder).glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
