"""Standard streams that are closed, full, gone, or speak ASCII only."""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

JSON: contextvars.ContextVar[bool] = contextvars.ContextVar("json", default=False)
"""Whether tables are printed as JSON lines and nothing else on standard output."""


QUIET: contextvars.ContextVar[bool] = contextvars.ContextVar("quiet", default=False)
"""Whether progress is left out."""


def say(text: str) -> None:
    """A line beside a table: on standard output, with --json on standard error."""
    print(text, file=sys.stderr if JSON.get() else sys.stdout)


def note(text: str) -> None:
    """A line of progress: on standard error, with --quiet nowhere."""
    if not QUIET.get():
        print(text, file=sys.stderr, flush=True)


def made(what: str, path: object) -> None:
    """A file or folder that a command wrote; with --json an object."""
    print(json.dumps({what: str(path)}) if JSON.get() else f"{what}: {path}")


def live() -> bool:
    """Whether progress may move the cursor: standard error is a terminal that can."""
    dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
    return sys.stderr.isatty() and not dumb and not QUIET.get()


class OutputLost(Exception):
    """Standard output cannot be written to; the cause is its argument."""


class _Stream:
    """A text stream that does something of its own when writing fails."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._guard():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guard():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError


class Patient(_Stream):
    """Whose failures nobody sees: progress and messages must not end a run whose log
    file is on a full disk or whose reader has gone."""

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.suppress(OSError, ValueError)


class Output(_Stream):
    """Whose failures are told from those of files."""

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise OutputLost(error) from None


def prepare() -> None:
    """Streams that can be written to whatever the caller left: closed ones lead
    nowhere (and no file gets their number), characters that the terminal does not know
    become question marks, and standard error never fails."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout = Output(sys.stdout)  # type: ignore[assignment]
    sys.stderr = Patient(sys.stderr)  # type: ignore[assignment]


def finish(code: int) -> int:
    """Writes what is buffered for standard output; the exit code after that."""
    try:
        sys.stdout.flush()
    except OutputLost as lost:
        return code or give_up(lost)
    return code


def give_up(lost: OutputLost) -> int:
    """The exit code when standard output is lost: 0 if its reader (head, less) has
    gone, which is its right; 1 for a full disk, which is said."""
    _drop_output()
    if isinstance(lost.args[0], BrokenPipeError):
        return 0
    print(f"lopax: cannot write the output: {lost.args[0]}", file=sys.stderr)
    return 1


def _drop_output() -> None:
    """Standard output leads nowhere from now on, so that the interpreter's own flush
    at its end does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
