"""Ctrl-C that is not lost, and ends no command with a crash.

Python raises `KeyboardInterrupt` wherever the program is. If that is in a callback of
its garbage collector (JAX has one), in a finaliser or in a weak reference's callback,
it prints the exception and goes on: the command would run to its end. If it is while
jaxlib is imported, which runs Python from C++ that expects no exception, the process
aborts. And while Python waits for a compiler it raises nothing at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

CODE = 130
"""Exit code of what was interrupted."""
WAIT = 0.1
"""Seconds until Ctrl-C is tried again."""
GRACE = 3.0
"""Seconds that a compiler, or another call Python waits for, may delay Ctrl-C."""


def say() -> None:
    print("\ninterrupted", file=sys.stderr, flush=True)


def leave() -> NoReturn:
    """Ends the process at once. What JAX still computes on threads of its own would
    crash a Python that shuts down in the usual way; and whatever is written survives a
    process that is killed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(CODE)


@contextlib.contextmanager
def kept(own: bool = False) -> Iterator[None]:
    """Makes Ctrl-C count while the block runs, unless a program that calls lopax has a
    handler of its own, or the block is not in the main thread. Where the process is the
    command's `own`, it ends after `GRACE` seconds even if Python still waits."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.unraisablehook
    waiting: list[threading.Timer] = []
    raised = threading.Event()

    def later() -> None:
        again = threading.Timer(WAIT, _send)
        again.daemon = True
        waiting.append(again)
        again.start()

    def hook(ignored: Any) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            later()
        else:
            before(ignored)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raised.set()
        if _imports_jaxlib(frame):
            later()
        else:
            signal.default_int_handler(number, frame)

    def end_if_nothing_is_raised() -> None:
        ours = signal.getsignal(signal.SIGINT) is interrupt
        if ours and not raised.wait(GRACE):
            say()
            leave()
        raised.clear()

    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, interrupt)
    try:
        with _heard(end_if_nothing_is_raised) if own else contextlib.nullcontext():
            yield
    finally:
        raised.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = before
        for again in waiting:
            again.cancel()  # the block is over, and so is what was to be stopped


@contextlib.contextmanager
def _heard(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` in a thread for every Ctrl-C, also while Python waits."""
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)

    def watch() -> None:
        with ear:
            while number := ear.recv(1):
                if number[0] == signal.SIGINT:
                    act()

    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        mouth.close()  # ends the thread


def _imports_jaxlib(frame: FrameType | None) -> bool:
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "<module>" and name.partition(".")[0] == "jaxlib":
            return True
        frame = frame.f_back
    return False


def _send() -> None:
    if os.name == "nt":
        signal.raise_signal(signal.SIGINT)  # kill would end the process there
    else:
        os.kill(os.getpid(), signal.SIGINT)
