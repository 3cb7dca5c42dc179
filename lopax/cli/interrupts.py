"""Ctrl-C that is not lost.

Python raises `KeyboardInterrupt` wherever the program is. If that is in a callback of
its garbage collector (JAX has one), in a finaliser or in a weak reference's callback,
it prints the exception and goes on: the command would run to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

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
    before = sys.unraisablehook
    waiting: list[threading.Timer] = []

    def hook(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        again = threading.Timer(WAIT, _send)
        again.daemon = True
        waiting.append(again)
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for again in waiting:
            again.cancel()  # the block is over, and so is what was to be stopped


def _send() -> None:
    if os.name == "nt":
        signal.raise_signal(signal.SIGINT)  # kill would end the process there
    else:
        os.kill(os.getpid(), signal.SIGINT)
