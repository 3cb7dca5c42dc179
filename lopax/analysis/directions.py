"""A rule's updates beside those of hand-made optimizers, along a real training run.

The rule trains; at every step each hand-made optimizer, fed the same gradients, says
where it would go. The cosine between the two, tensor by tensor, says which of them the
rule resembles.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from numpy.typing import NDArray

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task
from lopax._core.types import Params, Theta, Updates
from lopax.analysis import running
from lopax.analysis.running import Moment
from lopax.blocks.orthogonalize import orthogonalize

REFERENCES = (
    "gradient",
    "momentum",
    "sign-SGD",
    "sign of momentum",
    "Adam",
    "Muon",
    "weight decay",
)
"""Plain gradient; its average (0.9); its sign; the sign of Lion's average; Adam (0.9,
0.999, bias-corrected); orthogonalised Nesterov momentum (0.95), for matrices; and
straight towards zero."""


class Directions(NamedTuple):
    """A run of T steps on N tensors against R references."""

    names: tuple[str, ...]  # tensors
    shapes: tuple[tuple[int, ...], ...]
    cosines: NDArray[np.float64]  # [T, N, R]; NaN: Muon, on what is no matrix
    inward: NDArray[np.float64]  # [R] mean cosine of each reference with "weight decay"
    moved: NDArray[np.float64]  # [T] norm of the update / norm of the parameters
    losses: NDArray[np.float64]  # [T]
    scales: NDArray[np.float64]  # [T] step scale the rule reported

    def mean(self, skip: float = 0.1) -> NDArray[np.float64]:
        """[N, R] mean cosine after the first `skip` of the run."""
        return self.cosines[int(skip * len(self.cosines)) :].mean(axis=0)


def compare_directions(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    *,
    num_steps: int = 300,
    seed: int = 0,
) -> Directions:
    """Trains with the rule and measures the angles. Works for every architecture."""
    rules = _references()

    def observe(moment: Moment, updates: Updates, after: Any, states: Any) -> Any:
        columns, inward, after_states = [], [], []
        for rule, state in zip(rules, states, strict=True):
            uphill, state = rule.update(moment.grads, state, moment.params)
            after_states.append(state)
            columns.append(_cosines(updates, uphill))
            inward.append(running.cosine(_flat(uphill), _flat(moment.params)))
        ratio = jnp.linalg.norm(_flat(updates)) / jnp.linalg.norm(_flat(moment.params))
        seen = jnp.stack(columns, axis=1), jnp.stack(inward), ratio
        return tuple(after_states), seen

    found = running.record(
        optimizer,
        theta,
        task,
        num_steps,
        seed,
        observe=observe,
        carry=lambda params: tuple(rule.init(params) for rule in rules),
    )
    table, inward, moved = (np.array(x, np.float64) for x in found.seen)
    shapes = _shapes(task)
    flat = [i for i, shape in enumerate(shapes) if len(shape) < 2]
    table[:, flat, REFERENCES.index("Muon")] = math.nan
    return Directions(
        tuple(running.tensor_names(task)),
        tuple(shapes),
        table,
        inward.mean(axis=0),
        moved,
        np.asarray(found.losses, np.float64),
        np.asarray(found.scales, np.float64),
    )


def _references() -> tuple[optax.GradientTransformation, ...]:
    """In the order of `REFERENCES`; all point uphill."""

    def parameters(grads: Updates, params: Params | None) -> Any:
        del grads
        return params

    return (
        optax.identity(),
        optax.ema(0.9),
        optax.scale_by_sign(),
        optax.scale_by_lion(),
        optax.scale_by_adam(),
        _muon(0.95),
        optax.stateless(parameters),
    )


def _muon(decay: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised as a matrix [inputs, outputs]; vectors pass."""

    def orthogonal(x: Array) -> Array:
        if x.ndim < 2:
            return x
        return orthogonalize(x.reshape(-1, x.shape[-1]), "quintic").reshape(x.shape)

    def update(updates: Updates, state: Params, params: Any = None) -> Any:
        del params
        state = jax.tree.map(lambda m, g: decay * m + g, state, updates)
        nesterov = jax.tree.map(lambda m, g: decay * m + g, state, updates)
        return jax.tree.map(orthogonal, nesterov), state

    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


def _cosines(updates: Updates, uphill: Updates) -> Array:
    """[N] cosine of each update with the reference's, which goes downhill."""
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(uphill), strict=True)
    return jnp.stack([running.cosine(u, -d) for u, d in pairs])


def _flat(tree: Params) -> Array:
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def _shapes(task: Task) -> list[tuple[int, ...]]:
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return [tuple(x.shape) for x in jax.tree.leaves(params)]
