"""One process at a time writes into a folder; the others are told who does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lopax._core.atomic import make_folder, remove_leftovers, writing
from lopax._core.errors import FolderInUse

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def single_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the folder, which is made if need be, while the block runs.

    The lock is the operating system's, on a file in the folder, so it ends with its
    process however that ends; the file that a killed one leaves is taken over. Where
    the file system has no locks, host and process id in the file decide. What killed
    writers left half-written is removed.

    Raises `FolderInUse`, naming host and process id, and `NotWritable`.
    """
    folder = make_folder(folder)
    path = folder / NAME
    handle = _acquire(folder, path)
    try:
        os.ftruncate(handle, 0)
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        os.write(handle, json.dumps(owner).encode())
        remove_leftovers(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def tidy(folder: str | os.PathLike[str]) -> None:
    """Removes what killed writers left in a folder, if it can be written to and nobody
    else does."""
    if any(Path(folder).glob(".*")):
        with contextlib.suppress(OSError, FolderInUse), single_writer(folder):
            pass


def _acquire(folder: Path, path: Path) -> int:
    while True:
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                _check_owner(folder, path)
                return handle
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before us may have removed the file we opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BlockingIOError:
            os.close(handle)
            host, pid = _owner(path)
            raise _in_use(folder, host, pid) from None
        except OSError:  # a file system without locks
            try:
                _check_owner(folder, path)
            except FolderInUse:
                os.close(handle)
                raise
            return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _check_owner(folder: Path, path: Path) -> None:
    """Raises `FolderInUse` if the file names a process that may be alive."""
    host, pid = _owner(path)
    if pid is None or (host == socket.gethostname() and not _alive(pid)):
        return
    raise _in_use(folder, host, pid, f"; if that process is gone, delete {path}")


def _owner(path: Path) -> tuple[str, int | None]:
    try:
        found = json.loads(path.read_bytes())
        return str(found["host"]), int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown host", None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _in_use(folder: Path, host: str, pid: int | None, fix: str = "") -> FolderInUse:
    return FolderInUse(
        f"{folder} is being written by process {pid or '?'} on {host}; wait until it "
        f"ends, stop it, or choose another folder{fix}"
    )
