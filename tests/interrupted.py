"""Ctrl-C for tests: a command of `lopax` that is interrupted when it says something."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence


def interrupt(argv: Sequence[str], when: str) -> tuple[int, str]:
    """Sends Ctrl-C after the first line on stderr that begins with `when`.

    Returns the exit status and what stood on stderr from then on.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lopax", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(when):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        return process.wait(timeout=120), rest
