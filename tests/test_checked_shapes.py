"""The check of annotations can fail: `checked_shapes` as the import hook uses it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

pytest.importorskip("beartype", reason="beartype is not installed")
from checked_shapes import checked


def scaled(x: Float[Array, "n k"], by: Float[Array, "k"], name: str) -> Array:
    del name
    return x * by


def summed(x: Float[Array, "n k"]) -> Float[Array, "k"]:
    return x.sum(-1)  # the wrong axis


def test_a_wrong_shape_or_dtype_raises_and_another_class_does_not():
    function: Any = jaxtyped(scaled, typechecker=checked)
    x = jnp.ones((3, 2))
    assert function(x, jnp.ones(2), name=3).shape == (3, 2)  # not what is checked
    with pytest.raises(TypeCheckError, match="scaled"):
        function(x, jnp.ones(3), name="")
    with pytest.raises(TypeCheckError, match="scaled"):
        function(x.astype(int), jnp.ones(2), name="")


def test_a_wrong_result_raises():
    function = jaxtyped(summed, typechecker=checked)
    assert function(jnp.ones((2, 2))).shape == (2,)
    with pytest.raises(TypeCheckError, match=r"return value of .*summed"):
        function(jnp.ones((3, 2)))
