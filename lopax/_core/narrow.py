"""Momenta in fewer bytes: the formats, told once for JAX and PyTorch.

A step computes in float32; only what is kept between steps is narrow. Rounding to
nearest would freeze slow momenta: with decay 0.999 a step changes them by a thousandth,
and bfloat16 resolves half a per cent. So numbers are rounded stochastically, up with
probability equal to the remainder, which keeps their mean right. The random bits are a
hash of the number and of the step, so that there is no key to carry, and a repeated run
repeats them. Zero stays zero.

- "bfloat16": the upper half of a float32.
- "int8": one byte, in blocks of up to 256 numbers with a float32 of their own, as
  Dettmers et al. (2022, arXiv 2110.02861) keep them. A code is a sign and the seven
  upper bits of 1 + |x| / unit above those of 1, so that codes are close to each other
  near zero and `MANTISSA` bits apart above, as in their dynamic map, without a table.
  Blocks do not cross the first axis of a tensor (`Blocks`), so that a shard, or a row
  of embeddings, has its own. Tensors of one axis, of which there are few, and such with
  less than `MIN_ROW` numbers in a row stay in float32.

Arithmetic here is operators on int32 arrays, which wrap around in both frameworks;
those that assign write in place in torch, into what was made here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from lopax._core.config import check_one_of
from lopax._core.errors import ConfigError

DTYPES = ("float32", "bfloat16", "int8")
FIELDS = ("momentum", "momenta")
"""Names of the fields of a tensor's state that may be narrow."""
COPIES = {"momentum": 0, "momenta": 1}
"""Their axes in front of the tensor's own."""
BLOCK, MIN_ROW = 256, 16
MANTISSA = 4
"""Bits of it, see docs/performance.md. 7 would be a linear map."""
LARGEST = 2.0 ** ((1 << (7 - MANTISSA)) - 1) * (2.0 - 2.0**-MANTISSA) - 1.0
"""What the code 127 stands for; 128 codes begin at zero."""
_DROPPED = 23 - MANTISSA
_ONE = 127 << MANTISSA
"""The upper bits of 1.0."""
_TINY = 2.0**-110
"""Blocks in which nothing is larger are zero."""


class Words(Protocol):
    """What is not an operator."""

    def bits(self, x: Any) -> Any:
        """Of float32 numbers, as int32."""
        ...

    def floats(self, bits: Any) -> Any:
        """The inverse."""
        ...

    def bounded(self, n: Any) -> Any:
        """min(n, 127) of int32; may be in place."""
        ...

    def where(self, condition: Any, x: Any, y: Any) -> Any: ...


def check(dtype: str, rule: str, has_momenta: bool) -> None:
    """Raises `ConfigError` for an unknown dtype and for rules without momenta."""
    check_one_of(f"momentum_dtype of {rule!r}", dtype, DTYPES)
    if dtype != "float32" and not has_momenta:
        raise ConfigError(
            f"momentum_dtype = {dtype!r}: the state of {rule!r} has no momenta of "
            "its own; use momentum_dtype='float32'"
        )


class Blocks(NamedTuple):
    """How the numbers of a tensor are divided: each of `rows` (along one axis) into
    `count` blocks of `length`, the last of which may be longer than what is left."""

    rows: int
    row: int  # numbers in it
    blocks: int
    length: int

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int = 0) -> Blocks | None:
        """None for a tensor that is not kept in bytes. `axis`: of the rows."""
        if len(shape) < 2 or not all(shape):
            return None
        row = math.prod(shape) // shape[axis]
        if row < MIN_ROW:
            return None
        blocks = -(-row // BLOCK)
        return cls(shape[axis], row, blocks, -(-row // blocks))

    @property
    def padding(self) -> int:
        return self.blocks * self.length - self.row


def noise(bits: Any, step: Any) -> Any:
    """Sixteen random bits for each number (its bits, int32) in a step (int32)."""
    n = bits ^ (step * -0x61C88647)
    n *= -0x7A143595
    m = n >> 15
    m &= 0x1FFFF
    m ^= n
    m *= -0x3D4D51CB
    m >>= 16
    m &= 0xFFFF
    return m


def bfloat16(words: Words, x: Any, step: Any) -> Any:
    """float32 numbers that bfloat16 can hold, neighbours of finite x, right on average.

    Numbers that it can hold are returned as they are.
    """
    bits = words.bits(x)
    # Sixteen random bits below the sixteen that stay: the sum carries into those with
    # the right probability, and the rest is cut off.
    kept = noise(bits, step)
    kept += bits
    kept &= -0x10000
    return words.floats(kept)


def units(words: Words, largest: Any) -> Any:
    """What a block's numbers are divided by, from the largest of their sizes."""
    # XLA would make this product of a division.
    return words.where(largest < _TINY, largest * 0.0, largest * (1.0 / LARGEST))


def encode(words: Words, x: Any, unit: Any, step: Any) -> Any:
    """Codes from -127 to 127 (int32) of finite x, whose block has this unit."""
    bits = words.bits(x)
    size = abs(x)
    size *= words.where(unit > 0.0, 1.0 / (unit + (unit <= 0.0)), unit)
    size += 1.0
    code = noise(bits, step)
    code <<= 7 - MANTISSA
    code += words.bits(size)
    code >>= _DROPPED
    code -= _ONE
    code = words.bounded(code)
    sign = bits >> 31
    code ^= sign
    code -= sign
    return code


def decode(words: Words, code: Any, unit: Any) -> Any:
    """The numbers (float32) of such codes (int32)."""
    bits = abs(code)
    bits += _ONE
    bits <<= _DROPPED
    size = words.floats(bits)
    size -= 1.0
    # The sign by its bit: choosing by element takes torch longer than all the rest.
    bits = words.bits(size)
    bits ^= code & -0x80000000
    value = words.floats(bits)
    value *= unit
    return value
