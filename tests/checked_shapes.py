"""Shapes and dtypes in annotations, checked in every call.

    pytest --jaxtyping-packages=lopax,checked_shapes.checked tests/test_estimators.py

jaxtyping decorates each function and dataclass of the packages it is given. Only what
an annotation says of arrays and trees is checked here: many tests pass something of
another class on purpose, to see the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, PyTree

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """`function`, whose arrays must have the shapes and dtypes it states."""
    notes = getattr(function, "__annotations__", {})
    kept = {k: v if _of_arrays(v) else Any for k, v in notes.items()}
    if all(v is Any for v in kept.values()):
        return function
    function.__annotations__ = kept
    return beartype(function)


def _of_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and (
        issubclass(hint, AbstractArray) or isinstance(hint, type(PyTree))
    ):
        return True
    return any(_of_arrays(part) for part in get_args(hint))
