"""Ctrl-C that is not lost.

Python raises `KeyboardInterrupt` wherever the program is, and if that is in a callback
of its garbage collector (JAX has one) or in a finaliser, it prints the exception and
goes on: the command would run to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SWALLOWING = {"__del__", "_xla_gc_callback"}
"""Functions that Python calls by itself, ignoring what they raise."""
WAIT = 0.1
"""Seconds until Ctrl-C is tried again."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Makes Ctrl-C count while the block runs, unless a program that calls lopax has a
    handler of its own, or the block is not in the main thread."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _swallowed(frame):
        raise KeyboardInterrupt
    again = threading.Timer(WAIT, _send, (number,))
    again.daemon = True
    again.start()


def _swallowed(frame: FrameType | None) -> bool:
    """Whether what is raised here goes nowhere."""
    while frame is not None:
        if frame.f_code.co_name in SWALLOWING:
            return True
        frame = frame.f_back
    return False


def _send(number: int) -> None:
    if os.name == "nt":
        signal.raise_signal(number)  # kill would end the process there
    else:
        os.kill(os.getpid(), number)
