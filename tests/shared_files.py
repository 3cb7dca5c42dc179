"""Golden files: the project's own, and those of the shared folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NO_TORCH = (
    "torch is not installed; this runs with: pip install torch && pytest -n 2 -k torch"
)

GOLDEN = Path(__file__).parent / "golden"


def shared(*parts: str) -> Path:
    """A file of the shared folder; skips the test where that folder is absent."""
    root = os.environ.get("LOPAX_SHARED") or Path(__file__).parents[2] / "shared"
    path = Path(root, *parts)
    if not path.exists():
        pytest.skip(f"{Path(*parts)} is not in the shared folder (set LOPAX_SHARED)")
    return path


def golden(name: str) -> dict[str, np.ndarray]:
    """A golden file by name, from tests/golden or the shared folder."""
    own = GOLDEN / f"{name}.npz"
    with np.load(own if own.exists() else shared("golden", f"{name}.npz")) as file:
        return dict(file)


def part(file: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The entries below `prefix/`."""
    return {
        k.removeprefix(prefix + "/"): v
        for k, v in file.items()
        if k.startswith(prefix + "/")
    }
