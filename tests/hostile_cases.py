"""Attacks that the hostile tests and `benchmarks/hostile.py` share."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lopax._core.errors import LopaxError
from lopax.theta import load_theta


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a file, none equal to it: flipped bits (half of them in the
    first tenth, where headers and names are), overwritten, removed, inserted and
    repeated stretches, cut ends."""
    rng = random.Random(seed)
    while count:
        at = rng.randrange(len(data) if rng.random() < 0.5 else len(data) // 10 + 1)
        size = min(rng.choice((1, 4, 64, 1024)), len(data) - at)
        kind = rng.choice(("bit", "bit", "write", "remove", "insert", "repeat", "cut"))
        damaged = bytearray(data)
        if kind == "bit":
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == "write":
            damaged[at : at + size] = rng.randbytes(size)
        elif kind == "remove":
            del damaged[at : at + size]
        elif kind == "insert":
            damaged[at:at] = rng.randbytes(size)
        elif kind == "repeat":
            damaged[at:at] = data[at : at + size]
        else:
            del damaged[at:]
        if damaged != data:
            count -= 1
            yield f"{kind} at {at}", bytes(damaged)


def with_header(data: bytes, text: str) -> bytes:
    """A lopax file with another text as its header."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["lopax"] = text
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    return struct.pack("<Q", len(new)) + new + data[8 + size :]


def header_of(data: bytes) -> dict[str, Any]:
    """The header of a lopax file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["lopax"])


def loaded(path: Path, original: Any) -> str:
    """What `load_theta` makes of a damaged file: "refused", "same", "values" (other
    numbers in the same tree), "other" (another tree), or the exception that leaked."""
    try:
        theta = load_theta(path)
    except LopaxError:
        return "refused"
    except Exception as error:
        return f"leaked {type(error).__name__}"
    if jax.tree.structure(theta) != jax.tree.structure(original):
        return "other"
    equal = jax.tree.map(np.array_equal, theta, original)
    return "same" if all(jax.tree.leaves(equal)) else "values"
