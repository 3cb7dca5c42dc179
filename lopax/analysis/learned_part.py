"""What meta-training changed of a rule that starts as a hand-made optimizer.

Learned Muon is one at theta = 0. What its tensors are told is asked for beside what
they are told there, without training anything; and runs are trained without one part
of theta after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lopax._core.errors import NotApplicable
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.run import Run
from lopax._core.task import Task
from lopax._core.types import Theta
from lopax.analysis import running
from lopax.architectures.classes import LearnedMuon
from lopax.architectures.described import XP
from lopax.rules import momentum_features
from lopax.rules.form import Place, Rows, complete

TENSORS = {"matrix": (128, 128), "vector": (128,), "embedding": (1_000, 64)}
"""A tensor of each role, of the usual size of its shape."""


class Told(NamedTuple):
    """What tensors of three roles are told over a run of T steps."""

    fractions: NDArray[np.float64]  # [P] of the run that is done
    sizes: Mapping[str, NDArray[np.float64]]  # by role, [P] times the hand-made ones
    weights: NDArray[np.float64]  # [P, 1 + K] of the gradient and of each momentum
    hand_made: NDArray[np.float64]  # [1 + K] the same at theta = 0


class Worth(NamedTuple):
    """Training losses without all of theta, which leaves the hand-made optimizer, then
    without one part of it after the other."""

    parts: Sequence[str]
    mean_ratio: NDArray[np.float64]  # [1 + parts] mean loss / that with everything
    loss_ratio: NDArray[np.float64]  # [1 + parts] the same over the last tenth
    final: float  # the mean loss over the last tenth, with everything


def has_hand_made_start(optimizer: LearnedOptimizer) -> bool:
    """Whether theta = 0 is a hand-made optimizer, and theta is used."""
    return isinstance(optimizer, LearnedMuon) and optimizer.config.learned


def against_start(
    optimizer: LearnedOptimizer,
    theta: Theta,
    num_steps: int = 1_000,
    confirmed: float = 0.0,
    points: int = 101,
) -> Told:
    """The sizes and weights over a run, against those of theta = 0.

    **Arguments:**

    - `confirmed`: the share of their momentum that gradients confirm, in [-1, 1]; see
        `momentum_features.confirmed`.

    The loss stays where it is, and a network sees features of zero. Raises
    `NotApplicable` for other rules.
    """
    _check(optimizer)
    fractions = np.linspace(0.0, 1.0, points, endpoint=False)
    given = jnp.asarray(num_steps), confirmed, jnp.asarray(fractions, jnp.float32)
    (sizes, weights), (plain, hand_made) = (
        _asked(optimizer, t, *given)
        for t in (theta, jax.tree.map(jnp.zeros_like, theta))
    )
    ratio = np.asarray(sizes / plain, np.float64)
    return Told(
        fractions,
        {role: ratio[:, i] for i, role in enumerate(TENSORS)},
        np.asarray(weights[:, 0], np.float64),
        np.asarray(hand_made[0, 0], np.float64),
    )


@functools.partial(jax.jit, static_argnums=0)
def _asked(
    optimizer: Any, theta: Theta, total: Any, confirmed: Any, fractions: Any
) -> Any:
    """[P, roles] sizes and [P, roles, 1 + K] weights."""
    rule = optimizer.rule
    places = [
        Place(shape, role=role, reading=tuple(range(len(shape))))
        for role, shape in TENSORS.items()
    ]

    def usual(place: Place) -> Any:
        fan_in = place.shape[0] if place.rank > 1 else 1
        return jnp.full(place.shape, fan_in**-0.5, jnp.float32)

    starts = jnp.stack([complete(rule.measure(XP, p, usual(p))) for p in places])
    static = jnp.stack([jnp.asarray(momentum_features.of_shape(p)) for p in places])
    summaries = jnp.zeros((len(places), momentum_features.NUM_SUMMARIES))
    summaries = summaries.at[:, -static.shape[1] :].set(static)
    summaries = summaries.at[:, 0].set(confirmed).at[:, 1].set(1.0)
    shared = rule.init_shared(XP, theta, total, starts)
    if shared.signal is not None:
        kept = jnp.stack([confirmed, 1.0, jnp.maximum(-confirmed, 0.0)])
        shared = shared._replace(signal=kept)
    carried = rule.init_rows(XP, theta, shared, starts)

    def at(fraction: Any) -> Any:
        updates = jnp.maximum(fraction * total, 1_000.0)  # momenta know their means
        run = Run(jnp.ones(()), fraction, updates, total)
        advance = rule.advance(
            XP, theta, shared, run, Rows(len(places), summaries, carried)
        )
        return advance.told["sizes"], advance.told["weights"]

    return jax.vmap(at)(fractions)


def worth_of_parts(
    optimizer: LearnedOptimizer,
    theta: Theta,
    task: Task,
    *,
    num_steps: int = 300,
    seeds: Sequence[int] = (0, 1),
) -> Worth:
    """Trains with everything, with the hand-made start, and without one part of theta
    (a first-level name) after the other; parts that are zero are left out.

    Raises `NotApplicable` for other rules.
    """
    _check(optimizer)
    zeros = jax.tree.map(jnp.zeros_like, theta)
    acting = [k for k, part in theta.items() if _acts(k, part)]
    thetas = [theta, zeros, *({**theta, k: zeros[k]} for k in acting)]
    curves = running.losses(optimizer, running.stack(thetas), task, num_steps, seeds)
    return Worth(acting, *running.against_first(curves))


def _acts(name: str, part: Any) -> bool:
    """Whether a part of theta says anything; networks do not behind zeros."""
    last = {"network": ("head",), "elements": ("w2", "b2")}.get(name)
    seen = part if last is None else [part[k] for k in last]
    return any(bool(jnp.any(x != 0.0)) for x in jax.tree.leaves(seen))


def _check(optimizer: LearnedOptimizer) -> None:
    if not has_hand_made_start(optimizer):
        raise NotApplicable(
            f"{optimizer.name!r} does not start as a hand-made optimizer: what its "
            "theta changed against one exists for learned_muon"
        )
