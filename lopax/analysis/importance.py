"""Which inputs a per-element network really uses.

Each group of inputs is replaced by its mean over a recorded run (so that the network
still gets numbers of the usual size), and what that changes is measured twice: in the
update, at the same moments of the same run, and in the loss at the end of runs that are
trained without the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.task import Task
from lopax._core.types import Theta
from lopax.analysis import running
from lopax.analysis.elements import InputGroup, element_net
from lopax.analysis.running import Moment


class Importance(NamedTuple):
    """Of each of K groups of inputs, float64."""

    groups: tuple[InputGroup, ...]
    turned: NDArray[np.float64]  # [K] 1 - cosine of the update with the intact one
    changed: NDArray[np.float64]  # [K] RMS of the update's change / RMS of the update
    mean_ratio: NDArray[np.float64]  # [K] mean loss of runs without it / with all
    loss_ratio: NDArray[np.float64]  # [K] final loss likewise; inf: diverged
    final: float  # final loss with all
    means: NDArray[np.float64]  # [inputs] what was put in place


def feature_importance(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    *,
    num_steps: int = 300,
    seeds: Sequence[int] = (0, 1),
) -> Importance:
    """Takes every group of inputs away in turn.

    Raises `NotApplicable` if the architecture has no per-element network with named
    inputs.
    """
    net = element_net(optimizer)
    groups = net.inputs
    means = np.asarray(channel_means(optimizer, theta, task, num_steps, seeds[0]))
    thetas = running.stack(
        [theta, *(net.without(theta, g, jnp.asarray(means)) for g in groups)]
    )

    def observe(moment: Moment, updates: Any, after: Any, carry: Any) -> Any:
        def changed_update(changed: Theta) -> Any:
            return optimizer.update(
                changed, moment.grads, moment.state, moment.params, value=moment.loss
            )[0]

        intact = jnp.concatenate([u.ravel() for u in jax.tree.leaves(updates)])

        def compare(flat: Array) -> tuple[Array, Array]:
            size = jnp.sqrt(jnp.sum(jnp.square(intact)))
            gap = jnp.sqrt(jnp.sum(jnp.square(flat - intact)))
            return 1.0 - running.cosine(flat, intact), gap / jnp.maximum(size, 2e-38)

        others = jax.vmap(changed_update)(thetas)
        flat = [u.reshape(u.shape[0], -1) for u in jax.tree.leaves(others)]
        return carry, jax.vmap(compare)(jnp.concatenate(flat, axis=1))

    found = running.record(optimizer, theta, task, num_steps, seeds[0], observe=observe)
    turned, changed = (np.asarray(x, np.float64).mean(axis=0)[1:] for x in found.seen)
    curves = running.losses(optimizer, thetas, task, num_steps, seeds)
    ratios = running.against_first(curves)
    return Importance(
        groups=groups,
        turned=turned,
        changed=changed,
        mean_ratio=ratios.mean,
        loss_ratio=ratios.last,
        final=ratios.final,
        means=means.astype(np.float64),
    )


def channel_means(
    optimizer: LearnedOptimizer, theta: Theta, task: Task, num_steps: int, seed: int
) -> Array:
    """[inputs] the mean of every input over a run."""
    net = element_net(optimizer)

    def observe(moment: Moment, updates: Any, after: Any, carry: Any) -> Any:
        tensors = jax.tree.structure(moment.params).flatten_up_to(after.tensors)
        grads = running.as_tensors(moment.grads)
        params = running.as_tensors(moment.params)
        return carry, net.means(grads, params, tensors, moment.step)

    found = running.record(optimizer, theta, task, num_steps, seed, observe=observe)
    return jnp.mean(found.seen, axis=0)
