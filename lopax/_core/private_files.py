"""Folders and files that no other user of this machine can have written to."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STALE = 3600.0
"""Seconds after which what a killed process left behind is removed."""


class Refused(Exception):
    """A folder or a file that is not to be trusted, or not whole."""


def check_owner(status: os.stat_result, what: Any) -> None:
    """Raises `Refused` if another user could have written to it."""
    if status.st_uid not in (os.geteuid(), 0):
        raise Refused(f"{what} belongs to another user (id {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise Refused(f"{what} can be written to by other users (mode {mode:04o})")


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[Path]:
    """`path`, made if need be, under a name that cannot come to mean another folder
    while it is in use (where the system has such names).

    Raises `Refused` if others can write to it, `OSError` if it cannot be had.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.is_symlink():
        raise Refused(f"{path} is a link")
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        check_owner(os.fstat(opened), path)
        held = Path(f"/proc/self/fd/{opened}")
        yield held if held.is_dir() else path
    finally:
        os.close(opened)


def read(path: Path) -> bytes:
    """A regular file's bytes. Raises `Refused`, `OSError`."""
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(opened, "rb") as file:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{path.name} is no file")
        check_owner(status, path.name)
        return file.read()


def sweep(place: Path, *names: tuple[str, str]) -> None:
    """Removes what killed builds have left: names with these beginnings and ends."""
    with contextlib.suppress(OSError), os.scandir(place) as found:
        for item in found:
            if not any(
                item.name.startswith(a) and item.name.endswith(b) for a, b in names
            ):
                continue
            with contextlib.suppress(OSError):
                status = item.stat(follow_symlinks=False)
                if status.st_uid != os.geteuid():
                    continue
                if time.time() - status.st_mtime < STALE:
                    continue
                if item.is_dir(follow_symlinks=False):
                    shutil.rmtree(item.path, ignore_errors=True)
                else:
                    os.unlink(item.path)
