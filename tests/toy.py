"""Inner problems and optimizers small enough for exact answers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lopax._core.optimizer import Info, LearnedOptimizer
from lopax._core.task import Task, TaskFamily


class LearnedRate(LearnedOptimizer):
    """Gradient descent with learning rate exp(theta["rate"]); `unused` does nothing."""

    name: ClassVar[str] = "learned_rate"
    needs_loss: ClassVar[bool] = False
    needs_horizon: ClassVar[bool] = False
    reference: ClassVar[str] = "test"

    def init_theta(self, key: Any) -> Any:
        del key
        return {"rate": jnp.full((1,), -1.0), "unused": jnp.zeros((2,))}

    def init(self, theta: Any, params: Any, num_steps: Any = None) -> Any:
        del theta, params, num_steps
        return {"steps": jnp.zeros((), jnp.int32)}

    def update(self, theta, grads, state, params, *, value=None, **extra):
        del params, value, extra
        rate = jnp.exp(theta["rate"][0])
        updates = jax.tree.map(lambda g: -rate * g, grads)
        zero, none = jnp.zeros(()), jnp.asarray(-1, jnp.int32)
        info = Info(rate, jnp.asarray(False), none, zero, zero, zero)
        return updates, {"steps": state["steps"] + 1}, info


@dataclasses.dataclass(frozen=True)
class Parabola(Task):
    """loss = x^2 / 2 from x = 1, without noise: everything is known in closed form."""

    def init(self, key: Any) -> Any:
        del key
        return {"x": jnp.ones(())}, None

    def loss(self, params, task_state, key, batch):
        del key, batch
        return 0.5 * jnp.square(params["x"]), task_state


class ParabolaFamily(TaskFamily):
    def sample(self, key, stratum=None):
        del key, stratum
        return ()

    def task(self, config):
        del config
        return Parabola()


def parabola_losses(rates: np.ndarray) -> np.ndarray:
    """Losses [T] before each update for log learning rates [T] (numpy, exact)."""
    x, losses = 1.0, []
    for log_rate in rates:
        losses.append(0.5 * x**2)
        x = x - np.exp(log_rate) * x
    return np.asarray(losses)


def smoothed_gradient(objective, dims: int, sigma: float, order: int = 24) -> float:
    """d/dtheta of E[objective(theta + sigma z)], z ~ N(0, I) of `dims`, at theta = -1
    in every dimension, summed over dimensions (Gauss-Hermite quadrature)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    total = 0.0
    for index in np.ndindex(*([order] * dims)):
        z = nodes[list(index)]
        weight = np.prod(weights[list(index)])
        total += weight * objective(-1.0 + sigma * z) * z.sum() / sigma
    return float(total)
