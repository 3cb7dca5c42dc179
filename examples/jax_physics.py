"""A physics-informed network: Poisson's equation, solved by training.

    python examples/jax_physics.py [--compare] [--steps 2000]

The network u(x, y) is trained until u_xx + u_yy = f on the square and u = 0 on its
edge. f is chosen such that the solution is sin(pi x) sin(2 pi y), which training never
sees. Adam is known to be slow on such losses: the equation and the edge pull with very
different strength.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax_judging import example

WIDTH, POINTS, EDGE = 32, 128, 64


def init(key: jax.Array) -> list[dict[str, jax.Array]]:
    sizes = (2, WIDTH, WIDTH, WIDTH, 1)
    pairs = zip(sizes[:-1], sizes[1:], jax.random.split(key, 4), strict=True)
    return [
        {"w": jax.random.normal(k, (a, b)) / a**0.5, "b": jnp.zeros(b)}
        for a, b, k in pairs
    ]


def u(params: Any, point: jax.Array) -> jax.Array:
    """The network at one point [2]; a number."""
    x = point
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return (x @ params[-1]["w"] + params[-1]["b"])[0]


def solution(point: jax.Array) -> jax.Array:
    return jnp.sin(jnp.pi * point[0]) * jnp.sin(2.0 * jnp.pi * point[1])


def residual(params: Any, point: jax.Array) -> jax.Array:
    """By how much the equation is missed at a point."""
    laplacian = jnp.trace(jax.hessian(u, argnums=1)(params, point))
    return laplacian + 5.0 * jnp.pi**2 * solution(point)


def loss_fn(params: Any, key: jax.Array) -> jax.Array:
    k1, k2, k3 = jax.random.split(key, 3)
    inside = jax.random.uniform(k1, (POINTS, 2))
    along = jax.random.uniform(k2, (EDGE,))
    side = jax.random.randint(k3, (EDGE,), 0, 4)
    across = (side % 2).astype(float)
    edge = jnp.where(
        (side < 2)[:, None],
        jnp.stack([along, across], axis=1),
        jnp.stack([across, along], axis=1),
    )
    equation = jax.vmap(residual, (None, 0))(params, inside)
    border = jax.vmap(u, (None, 0))(params, edge)
    return jnp.mean(jnp.square(equation)) + 100.0 * jnp.mean(jnp.square(border))


def train(opt: optax.GradientTransformation, steps: int) -> tuple[Any, Any]:
    """Training losses [steps], and the error of the solution, relative to its size."""
    opt = optax.with_extra_args_support(opt)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, key)
        updates, state = opt.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = init(key)
        keys = jax.random.split(key, steps)
        (params, _), losses = jax.lax.scan(step, (params, opt.init(params)), keys)
        axis = jnp.linspace(0.0, 1.0, 33)
        grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        found = jax.vmap(u, (None, 0))(params, grid)
        true = jax.vmap(solution)(grid)
        return losses, jnp.linalg.norm(found - true) / jnp.linalg.norm(true)

    return run(jax.random.key(0))


if __name__ == "__main__":
    example(str(__doc__), train, steps=2_000, unit="relative error")
