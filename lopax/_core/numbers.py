"""Numbers that a user gives an optimizer: lengths of runs, and factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lopax._core.errors import ConfigError

MAX_STEPS = 2**31 - 1
"""What the counters of a state (int32) can hold."""


def whole_steps(num_steps: Any) -> int:
    """A number of steps: an integer, a float that is whole, an array of one such.

    Raises `ConfigError` for everything else and outside 1 ... `MAX_STEPS`.
    """
    number = None
    if not isinstance(num_steps, (bool, str, bytes)) and _size(num_steps) == 1:
        array = np.asarray(_on_the_host(num_steps))
        if array.dtype.kind in "iuf":
            number = float(array.reshape(()))
    if number is None or not (number % 1 == 0 and 1 <= number <= MAX_STEPS):
        raise ConfigError(
            f"num_steps = {num_steps!r}: must be a whole number of at least 1 and at "
            f"most {MAX_STEPS:,}, such as num_steps=2_000"
        )
    return int(number)


def is_real(x: Any) -> bool:
    """Whether this is a real number on the host."""
    return isinstance(x, (int, float, np.integer, np.floating))


def check_factor(name: str, value: Any, *, negative: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a finite real number, which must be at
    least 0 without `negative`, or an array of one element in the place of one, whose
    value is not looked at: it may be traced, or wait for a device."""
    if hasattr(value, "dtype") and not isinstance(value, np.generic):
        if _size(value) != 1:
            raise ConfigError(
                f"{name} of shape {tuple(value.shape)}: must be one number"
            )
        return
    if is_real(value) and math.isfinite(value) and (negative or float(value) >= 0.0):
        return
    want = "a finite number" if negative else "a finite number, >= 0"
    raise ConfigError(f"{name} = {value!r}: must be {want}")


def _size(x: Any) -> int:
    is_tensor = callable(getattr(x, "numel", None))
    return int(x.numel()) if is_tensor else int(np.size(x))


def _on_the_host(x: Any) -> Any:
    item = getattr(x, "item", None)
    return item() if callable(item) and not isinstance(x, np.generic) else x
