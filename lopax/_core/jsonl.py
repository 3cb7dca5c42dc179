"""Logs of one JSON object a line: always valid JSON, and safe against a kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lopax._core.atomic import writing
from lopax._core.errors import FileFormatError


def dumps(value: Any) -> str:
    """JSON on one line in which numbers that are not finite are null."""
    return json.dumps(_finite(value), allow_nan=False)


def append_line(path: str | os.PathLike[str], line: Mapping[str, Any]) -> None:
    """Adds one object to a log. Raises `NotWritable`."""
    with writing(path), Path(path).open("a", encoding="utf-8") as file:
        file.write(dumps(line) + "\n")


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a log; [] if there is none. A last line that is not whole, of a
    process that was killed or is writing it, is left out.

    Raises `FileFormatError`, with its number, for any other line that is no object.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    texts = data.split(b"\n")
    found = []
    for number, text in enumerate(texts, 1):
        if number == len(texts):  # behind the last line break
            break
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            if number == len(texts) - 1:
                break
            raise FileFormatError(
                f"{path} is damaged: line {number} is no JSON object; delete it"
            )
        found.append(line)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
