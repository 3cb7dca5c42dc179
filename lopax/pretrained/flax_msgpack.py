"""Reads the published `theta.state` files (Flax's MessagePack format) without Flax.

Only what those files use is understood: maps, strings, integers, binary blobs, lists
and Flax's extension type 1, an array whose payload is itself MessagePack: (shape,
dtype name, little-endian bytes in C order).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from lopax._core.errors import FileFormatError

_ARRAY_EXTENSION = 1
_DEEPEST = 32  # levels of nesting; published files have three


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by path name, map keys joined by "/" (keys may contain "/" themselves).

    Raises `FileFormatError` if the file cannot be read, is not of this format, ends
    early, or holds anything but uniquely named arrays.
    """
    try:
        data = path.read_bytes()
        tree, end = _decode(data, 0, 0)
        if end != len(data) or not isinstance(tree, dict):
            raise ValueError("not one map of arrays")
        arrays: dict[str, np.ndarray] = {}
        _flatten(tree, "", arrays)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    except (
        IndexError,
        struct.error,
        ValueError,  # UnicodeDecodeError among them
        TypeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise FileFormatError(
            f"{path} is not a Flax-msgpack file of arrays, or is damaged "
            f"({error or 'ends early'})"
        ) from None
    if not arrays:
        raise FileFormatError(f"{path} holds no arrays")
    return arrays


def _flatten(node: Any, prefix: str, into: dict[str, np.ndarray]) -> None:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str):
            raise ValueError(f"the name {name!r} is no text")
        if isinstance(value, dict):
            _flatten(value, name + "/", into)
        elif not isinstance(value, np.ndarray):
            raise ValueError(f"{name} is no array")
        elif name in into:
            raise ValueError(f"{name} is there twice")
        else:
            into[name] = value


def _take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    if at + size > len(data):
        raise IndexError("ends early")
    return data[at : at + size], at + size


def _number(data: bytes, at: int, fmt: str) -> tuple[Any, int]:
    raw, at = _take(data, at, struct.calcsize(fmt))
    return struct.unpack(fmt, raw)[0], at


# tag -> struct format of the length that follows
_STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BINARIES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """One MessagePack value starting at `at`, and where the next one starts."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    tag, at = data[at], at + 1
    if tag <= 0x7F:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if tag <= 0x8F:
        return _decode_map(data, at, tag & 0x0F, depth + 1)
    if tag <= 0x9F:
        return _decode_list(data, at, tag & 0x0F, depth + 1)
    if tag <= 0xBF:
        raw, at = _take(data, at, tag & 0x1F)
        return raw.decode(), at
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    if tag in _NUMBERS:
        return _number(data, at, _NUMBERS[tag])
    if tag in _STRINGS:
        size, at = _number(data, at, _STRINGS[tag])
        raw, at = _take(data, at, size)
        return raw.decode(), at
    if tag in _BINARIES:
        size, at = _number(data, at, _BINARIES[tag])
        return _take(data, at, size)
    if tag in _ARRAYS:
        size, at = _number(data, at, _ARRAYS[tag])
        return _decode_list(data, at, size, depth + 1)
    if tag in _MAPS:
        size, at = _number(data, at, _MAPS[tag])
        return _decode_map(data, at, size, depth + 1)
    if tag in _EXTENSIONS:
        size, at = _number(data, at, _EXTENSIONS[tag])
        return _decode_extension(data, at, size)
    if tag in _FIXED_EXTENSIONS:
        return _decode_extension(data, at, _FIXED_EXTENSIONS[tag])
    raise ValueError(f"unknown tag {tag:#x}")


def _decode_map(
    data: bytes, at: int, size: int, depth: int
) -> tuple[dict[Any, Any], int]:
    found = {}
    for _ in range(size):
        key, at = _decode(data, at, depth)
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key], at = _decode(data, at, depth)
    return found, at


def _decode_list(data: bytes, at: int, size: int, depth: int) -> tuple[list[Any], int]:
    found = []
    for _ in range(size):
        value, at = _decode(data, at, depth)
        found.append(value)
    return found, at


def _decode_extension(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    code, at = _number(data, at, ">b")
    payload, at = _take(data, at, size)
    if code != _ARRAY_EXTENSION:
        raise ValueError(f"unknown extension {code}")
    (shape, name, raw), end = _decode(payload, 0, 0)
    dtype = np.dtype(name)
    if end != len(payload) or dtype.kind not in "fiub":
        raise ValueError(f"an array of dtype {name!r}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    dtype = dtype.newbyteorder("<")
    return np.frombuffer(raw, dtype).reshape(tuple(shape)).astype(dtype.type), at
