"""What this machine lets the process use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores this process may run on (`taskset`, containers), at least one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
