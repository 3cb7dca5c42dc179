"""A recurrent rule near a resting point, as a sum of momentum terms.

To first order h' = h* + J (h - h*) + B g and u = w h' + const. With J = R diag(E) L,
L = R^-1, every eigenvalue is a momentum term: a step that is the sum over j of
-alpha_j times the exponential sum of gradients with decay beta_j, where beta_j = E_j
and alpha_j = -(w R)_j (L B)_j (Maheswaranathan et al., 2020, arXiv 2011.02159). J is
far from normal in trained networks, so all of this is in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from numpy.typing import NDArray

from lopax._core.errors import ConfigError
from lopax.analysis.recurrent import RecurrentView


class Linearisation(NamedTuple):
    """Derivatives at a point, float64."""

    jacobian: NDArray[np.float64]  # [n, n] of the next state by the state
    input: NDArray[np.float64]  # [n] of the next state by the gradient
    readout: NDArray[np.float64]  # [n] of the step by the next state


class Modes(NamedTuple):
    """Momentum terms, those that move the parameter most first."""

    betas: NDArray[np.complex128]  # [n] decays
    alphas: NDArray[np.complex128]  # [n] rates

    @property
    def weights(self) -> NDArray[np.float64]:
        """[n] |alpha / (1 - beta)|: the step that a lasting gradient of one causes."""
        return np.abs(self.alphas / _away_from_zero(1.0 - self.betas))

    def response(self, lags: int) -> NDArray[np.float64]:
        """[lags] step at lag k after a single gradient of one."""
        powers = self.betas[None] ** np.arange(lags)[:, None]
        return -np.real(powers @ self.alphas)

    def real_betas(self, low: float, high: float) -> NDArray[np.float64]:
        """Real eigenvalues strictly between two bounds."""
        real = np.real(self.betas[np.abs(np.imag(self.betas)) < 1e-9])
        return np.sort(real[(real > low) & (real < high)])


class HeavyBall(NamedTuple):
    """Rate and decay of x <- x - alpha m, m <- beta m + g."""

    alpha: float
    beta: float


def linearise(
    view: RecurrentView, point: ArrayLike, gradient: float = 0.0
) -> Linearisation:
    """Derivatives of the rule at a state [n] and a gradient."""
    h = jnp.asarray(point, jnp.float32)
    g = jnp.asarray(gradient, jnp.float32)

    @jax.jit
    def derivatives(h: Array, g: Array) -> tuple[Array, Array, Array]:
        by_state, by_input = jax.jacfwd(view.transition, argnums=(0, 1))(h, g)
        return by_state, by_input, jax.grad(view.readout)(view.transition(h, g))

    return Linearisation(*(np.asarray(x, np.float64) for x in derivatives(h, g)))


def modes(linear: Linearisation) -> Modes:
    """The momentum terms of a linearisation."""
    betas, right = np.linalg.eig(linear.jacobian)
    # Solving for L B is better conditioned than inverting R.
    left_input = np.linalg.solve(right, linear.input.astype(np.complex128))
    found = Modes(
        np.asarray(betas, np.complex128), -(linear.readout @ right) * left_input
    )
    order = np.argsort(-found.weights)
    return Modes(found.betas[order], found.alphas[order])


def heavy_ball_optimum(low: float, high: float) -> HeavyBall:
    """The heavy-ball constants with the fastest worst-case rate on quadratics whose
    eigenvalues lie in [low, high] (Polyak, 1964)."""
    _check(low, high)
    a, b = math.sqrt(low), math.sqrt(high)
    return HeavyBall(4.0 / (a + b) ** 2, ((b - a) / (b + a)) ** 2)


def gradient_descent_optimum(low: float, high: float) -> float:
    """The learning rate with the fastest worst-case rate on the same quadratics."""
    _check(low, high)
    return 2.0 / (low + high)


def _check(low: float, high: float) -> None:
    if not 0.0 < low <= high:
        raise ConfigError(f"eigenvalues in [{low}, {high}]: need 0 < low <= high")


def _away_from_zero(x: NDArray[np.complex128]) -> NDArray[np.complex128]:
    return np.where(np.abs(x) < 1e-12, 1e-12, x)
