"""Where lopax keeps what it can make again."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """`LOPAX_CACHE_DIR`, or `lopax` in the user's cache folder; it need not exist.

    Where there is no home directory either, a folder of this user's name among the
    temporary ones.
    """
    chosen = os.environ.get("LOPAX_CACHE_DIR")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = os.path.expanduser(base)
    if base.startswith("~"):  # no home directory
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir(), f"lopax-{user}")
    return Path(os.path.abspath(base), "lopax")
