"""Compiles the C and C++ kernels once per machine and loads nothing it cannot trust.

Libraries lie in the folder `native` of the cache (`LOPAX_CACHE_DIR`), which is made for
this user alone (mode 0700), each beside a file with the SHA-256 of its bytes. A library
is loaded if folder and files belong to this user or to root, nobody else can write to
them, and the bytes have that sum; otherwise it is compiled again. Where the folder
cannot be trusted or written to, the library is compiled in a private temporary folder,
which is gone once it is loaded.

The names of libraries cover their sources, the compiler with its options, and whatever
else the caller says they depend on. Neither JAX nor torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lopax._core import private_files
from lopax._core.atomic import atomic_write
from lopax._core.cache import cache_dir
from lopax._core.errors import ConfigError, LopaxError
from lopax._core.private_files import Refused

TIMEOUT = 300.0
"""Seconds a compiler may take."""
_PREFIX = "lopax-build-"


class NativeUnavailable(LopaxError, RuntimeError):
    """A kernel cannot be had here; the message says why, and what would help.

    `expected`: nothing is broken, there is only no compiler or the user wants none.
    """

    def __init__(self, reason: str, expected: bool = False):
        super().__init__(reason)
        self.expected = expected


class Source(NamedTuple):
    """What to compile."""

    name: str
    files: Sequence[Path]  # the first is compiled, the others are its headers
    command: Sequence[str]  # compiler and options
    libraries: Sequence[str] = ()  # options behind the file
    symbols: Sequence[str] = ()  # that must be there
    depends: Sequence[str] = ()  # what else the result depends on

    def key(self) -> str:
        """A name for the result."""
        digest = hashlib.sha256()
        parts = [*self.command, *self.libraries, *self.depends, platform.machine()]
        for part in [*(p.read_bytes() for p in self.files), *map(str.encode, parts)]:
            digest.update(len(part).to_bytes(8, "little") + part)
        return f"{self.name}-{digest.hexdigest()[:24]}"


def switched_off() -> bool:
    """Whether the user wants no kernels: `LOPAX_KERNELS=off` (or 0, false, no).

    Raises `ConfigError` for what is neither that nor its opposite.
    """
    value = os.environ.get("LOPAX_KERNELS", "")
    wanted = value.strip().lower()
    if wanted in ("off", "0", "false", "no"):
        return True
    if wanted in ("", "on", "1", "true", "yes", "auto"):
        return False
    raise ConfigError(f"LOPAX_KERNELS = {value!r}: must be 'off' or 'on'")


def compiler(variable: str, names: Sequence[str]) -> list[str]:
    """The compiler to call, with arguments: what the environment variable says (a
    command line as in a shell), else the first of `names` that is installed.

    Raises `NativeUnavailable`, also where kernels are switched off.
    """
    if switched_off():
        raise NativeUnavailable("LOPAX_KERNELS is off", expected=True)
    if sys.platform == "win32":
        raise NativeUnavailable("there are none for Windows", expected=True)
    chosen = os.environ.get(variable, "").strip()
    if chosen:
        try:
            words = shlex.split(chosen)
        except ValueError as error:
            raise NativeUnavailable(
                f"{variable} = {chosen!r} is no command line ({error})"
            ) from None
        if not words or shutil.which(words[0]) is None:
            raise NativeUnavailable(
                f"{variable} = {chosen!r}: there is no such program", expected=True
            )
        return words
    for name in names:
        if shutil.which(name):
            return [name]
    raise NativeUnavailable(
        f"there is no compiler ({', '.join(names)}; or set {variable})", expected=True
    )


_known: dict[str, Any] = {}
_lock = threading.Lock()


def load(source: Source) -> ctypes.CDLL:
    """The library, from the cache or compiled; in one process the same every time.

    Raises `NativeUnavailable`, in one process for the same reason every time.
    """
    try:
        key = source.key()
    except OSError as error:
        raise NativeUnavailable(f"{source.name}: no source ({error})") from None
    with _lock:
        if key not in _known:
            try:
                _known[key] = _find_or_build(source, key)
            except NativeUnavailable as error:
                _known[key] = error
        found = _known[key]
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(str(found), found.expected)
    return found


def forget() -> None:
    """Lets the next `load` look again, for tests."""
    _known.clear()


def _find_or_build(source: Source, key: str) -> ctypes.CDLL:
    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        try:
            folder = stack.enter_context(
                private_files.own_folder(cache_dir() / "native")
            )
        except Refused as error:
            warnings.warn(
                f"the cache of compiled kernels is not used: {error}. They are "
                "compiled in every process; LOPAX_CACHE_DIR names another folder.",
                RuntimeWarning,
                stacklevel=2,
            )
        except OSError:
            pass  # there is no such folder, and none can be made
        if folder is not None:
            with contextlib.suppress(Refused, OSError):
                return _open_cached(folder / f"{key}.so", source)
        return _build(source, key, folder)


def _sum_of(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _open_cached(library: Path, source: Source) -> ctypes.CDLL:
    """Raises `Refused` or `OSError` for what must be compiled again."""
    expected = private_files.read(_sum_of(library)).strip()
    if hashlib.sha256(private_files.read(library)).hexdigest().encode() != expected:
        raise Refused(f"{library.name} is not what was written")
    return _open(library, source)


def _open(library: Path, source: Source) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    for name in source.symbols:
        if not hasattr(loaded, name):
            raise Refused(f"{library.name} has no function {name}")
    return loaded


def _build(source: Source, key: str, cache: Path | None) -> ctypes.CDLL:
    """Compiles, loads, and keeps in `cache` what was loaded."""
    try:
        work = tempfile.mkdtemp(prefix=_PREFIX, dir=_workplace())
    except OSError as error:
        raise NativeUnavailable(
            f"no temporary folder to compile in ({error})"
        ) from None
    try:
        library = Path(work, f"{key}.so")
        _compile(source, library)
        data = library.read_bytes() if library.is_file() else b""
        if not data:
            raise NativeUnavailable(f"{source.command[0]} wrote no library")
        stored = cache is not None and _store(cache / library.name, data)
        problem: Exception | None = None
        # Programs may not be run from the one place, or from the other.
        for place in ([cache / library.name] if cache and stored else []) + [library]:
            try:
                return _open(place, source)
            except (Refused, OSError) as error:
                problem = error
        if cache is not None:
            _remove(cache / library.name)
        raise NativeUnavailable(f"the compiled library does not load ({problem})")
    except OSError as error:
        raise NativeUnavailable(f"the library cannot be written ({error})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _workplace() -> str:
    """A folder for private folders: others may make their own in it, not touch ours.

    Raises `OSError`.
    """
    places = [cache_dir()]
    with contextlib.suppress(OSError):
        places.insert(0, Path(tempfile.gettempdir()))
    for place in places:
        with contextlib.suppress(OSError, Refused):
            status = place.stat()
            if not status.st_mode & stat.S_ISVTX:
                private_files.check_owner(status, place)
            if os.access(place, os.W_OK | os.X_OK):
                private_files.sweep(place, (_PREFIX, ""))
                return str(place)
    raise OSError("none of " + ", ".join(map(str, places)) + " can be used")


def _compile(source: Source, target: Path) -> None:
    """Raises `NativeUnavailable`; ends the compiler with all it has started."""
    program = source.command[0]
    line = [*source.command, str(source.files[0]), "-o", str(target), *source.libraries]
    # What a killed compiler leaves lies where it will be removed.
    environment = {**os.environ, "TMPDIR": str(target.parent)}
    try:
        running = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise NativeUnavailable(f"{program!r} cannot be run ({error})") from None
    try:
        said = running.communicate(timeout=TIMEOUT)[1]
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"{program!r} took over {TIMEOUT:g} s") from None
    finally:
        if running.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        if running.stderr is not None:
            running.stderr.close()
    if running.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or ["no message"]
        told = next((s for s in lines if "error" in s), lines[0])
        raise NativeUnavailable(f"{' '.join(source.command)} failed: {told[:300]}")


def _store(library: Path, data: bytes) -> bool:
    """Keeps a library and its sum; whether that worked (a full or read-only disk)."""
    try:
        private_files.sweep(library.parent, (".", ".tmp"))
        if not all(p.is_file() for p in (library, _sum_of(library)) if p.exists()):
            _remove(library)  # a pipe would be written to, not replaced
        with atomic_write(library) as temporary:
            temporary.chmod(0o600)  # whatever the user's umask
            temporary.write_bytes(data)
        with atomic_write(_sum_of(library)) as temporary:
            temporary.chmod(0o600)
            temporary.write_text(hashlib.sha256(data).hexdigest() + "\n")
        return True
    except OSError:
        return False


def _remove(library: Path) -> None:
    for path in (_sum_of(library), library):
        with contextlib.suppress(OSError):
            path.unlink()
