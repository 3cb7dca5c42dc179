"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's two matrices.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024, arXiv
2409.11321). optax has none, and no package for JAX that does is kept up; the numbers
agree with those of the PyTorch package heavyball.

A matrix G [m, n] keeps averages of G G^T and G^T G and an orthonormal basis of each. A
step turns the gradient into both bases, takes Adam's direction there, and turns it
back. Every `frequency` steps one step of orthogonal iteration moves the bases after
the averages, and the momentum is turned with them. Sides longer than `max_dimension`
are left as they are; vectors have plain Adam; a convolution's kernel is one matrix,
(window x in) by out. The first step only starts the averages and moves nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lopax._core.config import check_range
from lopax._core.types import Params
from lopax.evaluate.baselines.schedules import check_schedule, schedule_of

_NOISE = 64.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soap:
    """Settings of `soap`; momenta and frequency are those of the authors' code."""

    schedule: str = "linear"
    warmup: float = 0.02
    cooldown: float = 0.2
    b1: float = 0.95
    b2: float = 0.95
    shampoo_beta: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    frequency: int = 10
    """Steps between two moves of the bases."""
    max_dimension: int = 512
    """Longer sides of a matrix get no basis."""

    def __post_init__(self) -> None:
        check_schedule(self)
        for name in ("b1", "b2", "shampoo_beta"):
            check_range(self, name, above=0.0, below=1.0)
        check_range(self, "eps", above=0.0)
        check_range(self, "weight_decay", low=0.0)
        check_range(self, "frequency", low=1)
        check_range(self, "max_dimension", low=1)

    def make(self, num_steps: int, learning_rate: Any) -> optax.GradientTransformation:
        """The transformation for a run of `num_steps` updates."""
        rate = schedule_of(
            num_steps, learning_rate, self.schedule, self.warmup, self.cooldown
        )
        return optax.chain(
            scale_by_soap(self),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )


class Side(NamedTuple):
    """One side of a matrix, n long."""

    average: Float[Array, "n n"]
    basis: Float[Array, "n n"]  # columns are the eigenvectors


class Turned(NamedTuple):
    """What a tensor keeps; moments are in the turned space."""

    momentum: Array
    second: Array
    left: Side | None
    right: Side | None


class SoapState(NamedTuple):
    """Steps made, and a `Turned` per tensor."""

    count: Array  # [] int32  # pyright: ignore[reportIncompatibleMethodOverride]
    tensors: tuple[Turned, ...]


def scale_by_soap(config: Soap) -> optax.GradientTransformation:
    """SOAP's direction; see the module docstring."""
    c = config

    def init(params: Params) -> Any:
        def one(p: Array) -> Turned:
            flat = _flat(p)
            sides = [_side(n, p.dtype, c.max_dimension) for n in flat.shape[-2:]]
            left, right = sides if flat.ndim == 2 else (None, None)
            return Turned(jnp.zeros_like(flat), jnp.zeros_like(flat), left, right)

        tensors = tuple(one(p) for p in jax.tree.leaves(params))
        return SoapState(jnp.zeros((), jnp.int32), tensors)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        flats = [_flat(g) for g in leaves]
        step = state.count + 1  # of this step, from one

        def start() -> tuple[list[Array], tuple[Turned, ...]]:
            moved = tuple(
                t._replace(
                    left=_started(t.left, g @ g.T), right=_started(t.right, g.T @ g)
                )
                if g.ndim == 2
                else t
                for g, t in zip(flats, state.tensors, strict=True)
            )
            return [jnp.zeros_like(g) for g in flats], moved

        def go() -> tuple[list[Array], tuple[Turned, ...]]:
            both = [
                _step(c, g, t, step) for g, t in zip(flats, state.tensors, strict=True)
            ]
            return [b[0] for b in both], tuple(b[1] for b in both)

        directions, tensors = jax.lax.cond(step == 1, start, go)
        shaped = [d.reshape(g.shape) for d, g in zip(directions, leaves, strict=True)]
        return treedef.unflatten(shaped), SoapState(step, tensors)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _step(c: Soap, grad: Array, tensor: Turned, step: Array) -> tuple[Array, Turned]:
    left, right = tensor.left, tensor.right
    turned = _turn(grad, left, right)
    b1, b2 = (_debiased(b, step - 1) for b in (c.b1, c.b2))
    momentum = b1 * tensor.momentum + (1.0 - b1) * turned
    second = b2 * tensor.second + (1.0 - b2) * jnp.square(turned)
    direction = momentum / jnp.maximum(jnp.sqrt(second), c.eps)
    direction = _turn_back(direction, left, right)
    if grad.ndim < 2:
        return direction, tensor._replace(momentum=momentum, second=second)
    beta = _debiased(c.shampoo_beta, step)
    left = _averaged(left, grad @ grad.T, beta)
    right = _averaged(right, grad.T @ grad, beta)

    def move() -> tuple[Array, Side | None, Side | None]:
        straight = _turn_back(momentum, left, right)
        new = _moved(left, c.eps), _moved(right, c.eps)
        return _turn(straight, *new), *new

    def keep() -> tuple[Array, Side | None, Side | None]:
        return momentum, left, right

    momentum, left, right = jax.lax.cond(step % c.frequency == 0, move, keep)
    return direction, Turned(momentum, second, left, right)


def _flat(x: Array) -> Array:
    """Vectors as they are; anything else as one matrix, its last axis the outputs."""
    return x if x.ndim < 2 else x.reshape(-1, x.shape[-1])


def _side(n: int, dtype: Any, longest: int) -> Side | None:
    if n == 1 or n > longest:
        return None
    return Side(jnp.zeros((n, n), dtype), jnp.eye(n, dtype=dtype))


def _turn(x: Array, left: Side | None, right: Side | None) -> Array:
    x = x if left is None else left.basis.T @ x
    return x if right is None else x @ right.basis


def _turn_back(x: Array, left: Side | None, right: Side | None) -> Array:
    x = x if left is None else left.basis @ x
    return x if right is None else x @ right.basis.T


def _averaged(side: Side | None, product: Array, beta: Array) -> Side | None:
    if side is None:
        return None
    return side._replace(average=beta * side.average + (1.0 - beta) * product)


def _started(side: Side | None, product: Array) -> Side | None:
    """The basis of the first gradient's own matrix, largest eigenvalues first."""
    if side is None:
        return None
    _, vectors = jnp.linalg.eigh(product)
    return Side(product, vectors[:, ::-1])


def _moved(side: Side | None, eps: float) -> Side | None:
    """One step of orthogonal iteration. Each column keeps its place and its direction,
    so that the second moments still belong to it."""
    if side is None:
        return None
    average, basis = side
    powered = average @ basis
    values = jnp.sum(basis * powered, axis=0)
    # What the average says nothing about would be turned at random: hold it.
    noise = min(_NOISE * len(basis) * float(jnp.finfo(basis.dtype).eps), 0.125)
    tiny = jnp.finfo(basis.dtype).tiny
    hold = max(eps, noise) * jnp.maximum(jnp.max(jnp.abs(values)), tiny)
    order = jnp.argsort(-values)
    q, r = jnp.linalg.qr((powered + hold * basis)[:, order])
    q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)
    return side._replace(basis=jnp.zeros_like(q).at[:, order].set(q))


def _debiased(beta: float, step: Array) -> Array:
    """The decay that makes a moving average start unbiased; 0 at step 1."""
    return 1.0 - (1.0 - beta) / (1.0 - beta ** step.astype(jnp.float32))
