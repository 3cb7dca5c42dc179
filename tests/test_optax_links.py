"""Weight decay and the factor, link by link."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lopax._core.errors import StructureMismatch
from lopax.optax.links import Decay, Made, Multiply

PARAMS = {"a": jnp.full((2,), 4.0), "b": jnp.ones((2,), jnp.bfloat16)}
MOVES = {"a": jnp.full((2,), -1.0), "b": jnp.full((2,), -1.0, jnp.bfloat16)}


def made(skipped: bool = False) -> Made:
    return Made.of(
        MOVES, PARAMS, PARAMS, jnp.int32(3), jnp.float32(0.5), jnp.asarray(skipped)
    )


def values(found: Made) -> dict[str, list[float]]:
    return {k: np.asarray(x, np.float32).tolist() for k, x in found.moves.items()}


def test_decay_takes_its_share_of_what_the_mask_names():
    assert values(Decay(0.1)(made())) == {
        "a": pytest.approx([-1.2, -1.2]), "b": pytest.approx([-1.05, -1.05])
    }  # fmt: skip
    masked = values(Decay(0.1, {"a": True, "b": False})(made()))
    assert masked["b"] == [-1.0, -1.0] and masked["a"] == pytest.approx([-1.2, -1.2])
    by_function = Decay(0.1, lambda p: {k: k == "a" for k in p})
    assert values(by_function(made())) == masked
    with pytest.raises(StructureMismatch, match="mask"):
        Decay(0.1, {"a": True})(made())


def test_nothing_decays_in_a_step_that_is_skipped_or_without_decay():
    assert values(Decay(0.1)(made(skipped=True))) == values(made())
    start = made()
    assert Decay(0.0)(start) is start
    assert Decay(0.1, False)(start) is start


def test_the_factor_counts_calls():
    assert values(Multiply(2.0)(made()))["a"] == [-2.0, -2.0]
    by_calls = Multiply(lambda count: 1.0 * count, every=4)
    assert values(by_calls(made()))["b"] == [-12.0, -12.0]


def test_moves_are_float32_on_their_way_and_leave_as_they_came():
    found = Multiply(1.5)(Decay(0.1)(made()))
    assert {x.dtype.name for x in found.moves.values()} == {"float32"}
    given = found.as_given(MOVES)
    assert {k: x.dtype for k, x in given.items()} == {
        k: x.dtype for k, x in MOVES.items()
    }
