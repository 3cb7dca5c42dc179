"""Steps that are taken back are zero, whatever way they were made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopax._core.zeroing import zero_unless

STEPS = [jnp.arange(1.0, 5.0), jnp.full((2, 3), jnp.nan), jnp.ones(2, jnp.bfloat16)]


@pytest.mark.parametrize("in_place", [[False] * 3, [True, False, True], [True] * 3])
@pytest.mark.parametrize("made", [False, True])
def test_zero_unless(made, in_place):
    found = jax.jit(lambda m, s: zero_unless(m, s, in_place))(jnp.asarray(made), STEPS)
    for x, step in zip(found, STEPS, strict=True):
        assert x.dtype == step.dtype
        np.testing.assert_array_equal(x, step if made else jnp.zeros_like(step))


def test_of_a_batch_each_by_its_own_flag():
    made = jnp.array([True, False, True])
    steps = jnp.arange(1.0, 7.0).reshape(3, 2)
    (found,) = jax.vmap(lambda m, s: zero_unless(m, [s], [True]))(made, steps)
    np.testing.assert_array_equal(found, steps * made[:, None])


@pytest.mark.parametrize("made", [False, True])
def test_derivatives_of_both_modes(made):
    def total(x):
        return jnp.sum(zero_unless(jnp.asarray(made), [x**2], [True])[0])

    x = jnp.array([1.0, 2.0])
    want = 2 * x * made
    np.testing.assert_allclose(jax.grad(total)(x), want)
    np.testing.assert_allclose(jax.jacfwd(total)(x), want)


def test_nothing_is_copied_where_nothing_is_taken_back():
    def step(made, x):
        return zero_unless(made, [x @ x], [True])

    x = jnp.ones((256, 256))
    compiled = jax.jit(step).lower(jnp.asarray(True), x).compile()
    memory = compiled.memory_analysis()
    if memory is None or jax.default_backend() != "cpu":
        pytest.skip("this backend does not tell, or chooses")
    assert memory.temp_size_in_bytes < x.nbytes
