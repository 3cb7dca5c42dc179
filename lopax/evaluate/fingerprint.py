"""What a task computes, as a hash: so that a changed task is never taken for the old.

Results are found again by a key. A registered task has a version; a user's own has
only its code, so its key holds a hash of the traced program (initialisation, loss,
gradient, held-out loss) and of every array in it. An edit that changes the numbers
changes the hash; renaming a variable does not.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core.errors import TaskError
from lopax._core.task import Task
from lopax._core.tree import split_arrays

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def task_fingerprint(task: Task, length: int = 12) -> str:
    """Hash of the task's traced computation and arrays.

    Raises `TaskError` if the task cannot be traced.
    """
    arrays, rebuild = split_arrays(task)

    def program(arrays: list[Any], key: Any) -> Any:
        inner = rebuild(arrays)
        params, task_state = inner.init(key)
        held_out = {
            split: (
                inner.evaluate(params, task_state, key, split),
                inner.metrics(params, task_state, key, split),
            )
            for split in ("valid", "test")
        }
        return inner.value_and_grad(params, task_state, key), held_out

    try:
        traced = jax.make_jaxpr(program)(arrays, jax.random.key(0))
    except (TypeError, ValueError, AttributeError) as error:
        raise TaskError(f"the task cannot be traced by JAX: {error}") from error
    digest = hashlib.sha256(_ADDRESS.sub("", str(traced.jaxpr)).encode())
    _add_arrays(digest, [*traced.consts, *arrays])
    return digest.hexdigest()[:length]


def data_hash(task: Task, length: int = 12) -> str:
    """Hash of the arrays a task holds: its data. Empty if it holds none."""
    arrays, _ = split_arrays(task)
    if not arrays:
        return ""
    digest = hashlib.sha256()
    _add_arrays(digest, arrays)
    return digest.hexdigest()[:length]


def _add_arrays(digest: Any, arrays: list[Any]) -> None:
    for array in arrays:
        if hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        value = np.ascontiguousarray(array)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
