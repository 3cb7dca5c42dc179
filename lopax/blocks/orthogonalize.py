"""Nearly orthogonal matrices by a Newton-Schulz iteration.

The quintic of Jordan et al. (Muon, 2024): it drives every singular value into roughly
[0.7, 1.2] in five iterations instead of to exactly one, which is what makes it fast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    x: Float[Array, "*n r c"], iterations: int = 5, eps: float = 1e-8
) -> Float[Array, "*n r c"]:
    """Approximately U V^T for each matrix X = U S V^T in the last two axes.

    Singular values below about 1e-3 of the Frobenius norm are not yet near one.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -2, -1) if tall else x
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))
    x = x / (norm + eps)
    a, b, c = COEFFICIENTS

    def once(_: int, y: Array) -> Array:
        gram = jnp.matmul(y, jnp.swapaxes(y, -2, -1), precision="highest")
        square = jnp.matmul(gram, gram, precision="highest")
        mixed = b * gram + c * square
        return a * y + jnp.matmul(mixed, y, precision="highest")

    x = jax.lax.fori_loop(0, iterations, once, x)
    return jnp.swapaxes(x, -2, -1) if tall else x
