"""How flat the inner loss is where the optimizer has come to, as a penalty.

Yang, Chen, Zhu, He, Tao, Liang and Wang, "Learning to Generalize Provably in Learning
to Optimize" (2023, arXiv 2302.11085) add to the meta-loss a measure R of the inner
loss f at the parameters x the optimizer reaches. All but one are made of quadratic
forms v^T H v of the Hessian H of f, for vectors v found without a gradient; then H
alone is differentiated, by Hessian-vector products:

- "trace": Hutchinson's estimate, the mean over Rademacher vectors (Hutchinson, 1989).
- "largest": v by power iteration from a random start; the eigenvalue of largest size.
- "lanczos_trace": the sum of the Ritz values of a Lanczos run from one Rademacher
    vector, with full reorthogonalisation: the published "spectral density" measure,
    which is the trace of H within the Krylov space and needs no eigenvalues.
- "lanczos_largest": the largest Ritz value of the same run.
- "local_entropy": g/2 |x - mu|^2, mu the mean of stochastic gradient Langevin dynamics
    around x, whose gradient is that of the negative local entropy (Chaudhari et al.,
    2017, arXiv 1611.01838).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lopax._core.config import check_choice, check_range
from lopax._core.types import Key, Params, Scalar

Loss = Callable[[Float[Array, "n"]], Scalar]
"""An inner loss as a function of the flattened parameters."""

MEASURES = ("trace", "largest", "lanczos_trace", "lanczos_largest", "local_entropy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flatness:
    """A penalty; see the module docstring. Raises `ConfigError`."""

    measure: str = "largest"
    weight: float = 1e-2
    """Times the measure. Depends on the measure and on the meta-loss's own scale."""
    iterations: int = 10
    """Rademacher vectors, power iterations, Lanczos or Langevin steps."""
    start: float = 0.0
    """Share of each inner run, in [0, 1), after which the penalty acts; the published
    code's default ("posterior") is the second half."""
    scope: float = 1.0
    """g of the local entropy: the larger, the closer to x."""
    step_size: float = 0.1
    """Of the Langevin steps."""
    temperature: float = 1e-4
    """Of the Langevin noise."""
    averaging: float = 0.75
    """Weight of each new Langevin iterate in the running mean."""

    def __post_init__(self) -> None:
        check_choice(self, "measure", MEASURES)
        check_range(self, "weight", above=0.0)
        check_range(self, "iterations", low=1)
        check_range(self, "start", low=0.0, below=1.0)
        check_range(self, "scope", above=0.0)
        check_range(self, "step_size", above=0.0)
        check_range(self, "temperature", low=0.0)
        check_range(self, "averaging", above=0.0, high=1.0)

    def __call__(
        self, loss: Callable[[Params], Scalar], params: Params, key: Key
    ) -> Scalar:
        """[] the measure of `loss` at `params`, differentiable in them."""
        flat, unravel = ravel_pytree(params)

        def f(x: Float[Array, "n"]) -> Scalar:
            return loss(unravel(x))

        count = self.iterations
        if self.measure == "trace":
            return hutchinson_trace(f, flat, key, count)
        if self.measure == "largest":
            return largest_eigenvalue(f, flat, key, count)
        if self.measure == "lanczos_trace":
            return lanczos_trace(f, flat, key, count)
        if self.measure == "lanczos_largest":
            return lanczos_largest(f, flat, key, count)
        mean = jax.lax.stop_gradient(self.langevin_mean(f, flat, key))
        return 0.5 * self.scope * jnp.sum(jnp.square(flat - mean))

    def langevin_mean(
        self, f: Loss, x: Float[Array, "n"], key: Key
    ) -> Float[Array, "n"]:
        """Running mean of Langevin steps on f(y) + g/2 |x - y|^2, from y = x."""
        noise = jnp.sqrt(self.step_size) * self.temperature

        def step(carry: tuple[Array, Array], key: Key) -> Any:
            y, mean = carry
            slope = jax.grad(f)(y) - self.scope * (x - y)
            y = y - self.step_size * slope + noise * jax.random.normal(key, y.shape)
            mean = (1.0 - self.averaging) * mean + self.averaging * y
            return (y, mean), None

        x = jax.lax.stop_gradient(x)
        keys = jax.random.split(key, self.iterations)
        return jax.lax.scan(step, (x, x), keys)[0][1]


def hessian_vector(
    f: Loss, x: Float[Array, "n"], v: Float[Array, "n"]
) -> Float[Array, "n"]:
    """[n] the Hessian of f at x times v."""
    return jax.jvp(jax.grad(f), (x,), (v,))[1]


def curvature(f: Loss, x: Float[Array, "n"], v: Float[Array, "n"]) -> Scalar:
    """[] v^T H v; the gradient treats v as a constant."""
    v = jax.lax.stop_gradient(v)
    return v @ hessian_vector(f, x, v)


def hutchinson_trace(f: Loss, x: Float[Array, "n"], key: Key, probes: int) -> Scalar:
    """[] an unbiased estimate of the Hessian's trace from `probes` vectors."""
    vectors = jax.random.rademacher(key, (probes, *x.shape), jnp.float32)
    # One after the other: side by side they need the memory of `probes` backward runs.
    forms = jax.lax.map(lambda v: curvature(f, x, v), vectors)
    return jnp.mean(forms)


def largest_eigenvalue(
    f: Loss, x: Float[Array, "n"], key: Key, iterations: int
) -> Scalar:
    """[] the eigenvalue of largest size, with its sign, by power iteration."""
    fixed = jax.lax.stop_gradient(x)

    def step(_: Any, v: Array) -> Array:
        return _normalised(hessian_vector(f, fixed, v))

    start = _normalised(jax.random.normal(key, x.shape))
    return curvature(f, x, jax.lax.fori_loop(0, iterations, step, start))


def lanczos_trace(f: Loss, x: Float[Array, "n"], key: Key, steps: int) -> Scalar:
    """[] the sum of the Ritz values: the trace once `steps` reaches the size of x."""
    basis, _ = _lanczos(f, jax.lax.stop_gradient(x), key, steps)
    return jnp.sum(jax.lax.map(lambda v: curvature(f, x, v), basis))


def lanczos_largest(f: Loss, x: Float[Array, "n"], key: Key, steps: int) -> Scalar:
    """[] the largest Ritz value, a lower bound of the largest eigenvalue."""
    basis, tridiagonal = _lanczos(f, jax.lax.stop_gradient(x), key, steps)
    _, vectors = jnp.linalg.eigh(tridiagonal)
    return curvature(f, x, vectors[:, -1] @ basis)


def _lanczos(
    f: Loss, x: Float[Array, "n"], key: Key, steps: int
) -> tuple[Float[Array, "m n"], Float[Array, "m m"]]:
    """An orthonormal basis of the Krylov space and the Hessian in it. Rows after the
    space is exhausted are zero."""
    start = _normalised(jax.random.rademacher(key, x.shape, jnp.float32))

    def step(carry: tuple[Array, Array], i: Array) -> Any:
        basis, v = carry
        basis = basis.at[i].set(v)
        product = hessian_vector(f, x, v)
        diagonal = v @ product
        rest = product
        for _ in range(2):  # once more than in exact arithmetic: float32
            rest = rest - (basis @ rest) @ basis
        size = jnp.linalg.norm(rest)
        exhausted = size <= 1e-5 * jnp.linalg.norm(product)
        following = jnp.where(exhausted, 0.0, rest / jnp.maximum(size, 1e-30))
        return (basis, following), (diagonal, jnp.where(exhausted, 0.0, size))

    empty = jnp.zeros((steps, *x.shape), jnp.float32)
    (basis, _), (diagonal, beside) = jax.lax.scan(
        step, (empty, start), jnp.arange(steps)
    )
    off = jnp.diag(beside[:-1], 1)
    return basis, jnp.diag(diagonal) + off + off.T


def _normalised(v: Float[Array, "n"]) -> Float[Array, "n"]:
    return v / (jnp.linalg.norm(v) + 1e-6)
