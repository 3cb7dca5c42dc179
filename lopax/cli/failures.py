"""Exceptions as one line for the user, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback

from lopax._core.errors import WORK_FAILED, LopaxError


def explain(error: BaseException) -> tuple[str, int]:
    """What to say about an exception that reached the command line, and the exit code:
    2 for bad input, 1 where the work itself failed."""
    if isinstance(error, LopaxError):
        return str(error), error.exit_code
    if _out_of_memory(error):
        return (
            "out of memory: use smaller batches or networks, fewer particles, a "
            "smaller estimator.chunk or vmap_size, or fewer workers. What was finished "
            "is kept"
        ), 1
    if isinstance(error, OSError):
        name = error.filename or error.filename2
        where = "" if name is None else f"{os.fsdecode(name)}: "
        code = 1 if error.errno in WORK_FAILED else 2
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError):  # only of making a folder
            reason = "a file is where a folder should be"
        return f"{where}{reason}", code
    where = keep_traceback(error)
    text = " ".join(str(error).split())[:300]
    return (
        f"{type(error).__name__}: {text}. This is not foreseen; the traceback is in "
        f"{where} (or shown with --debug)"
    ), 1


def keep_traceback(error: BaseException) -> str:
    """Writes the traceback to a temporary file; its name, or that there is none."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="lopax-traceback-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        return name
    return "no file, because none can be written"


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    jax = sys.modules.get("jax")
    kinds = () if jax is None else (jax.errors.JaxRuntimeError,)
    text = str(error)
    return isinstance(error, kinds) and (
        "RESOURCE_EXHAUSTED" in text or "ut of memory" in text
    )
