"""What the user adds to a step of the rule: weight decay, and a factor on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopax._core import leaves
from lopax._core import tree as trees
from lopax._core.errors import StructureMismatch
from lopax._core.numbers import is_real
from lopax._core.types import Count, Flag, Params, Scalar
from lopax.optax.storage import by_name


class Made(NamedTuple):
    """A step of the rule on its way to the user."""

    moves: dict[str, Any]  # by the tensors' names, float32
    params: Params  # as the user has them
    named: dict[str, Any]  # the same by name
    steps: Count  # [] int32, before this one
    step_scale: Scalar  # [] float32, the rule's own
    skipped: Flag  # [] whether this step changes nothing

    @classmethod
    def of(cls, moves: dict[str, Any], *others: Any) -> Made:
        """From the rule's moves in the dtypes it gives, and the other fields."""
        return cls({k: x.astype(jnp.float32) for k, x in moves.items()}, *others)

    def as_given(self, moves: dict[str, Any]) -> dict[str, Any]:
        """The moves in the dtypes of the rule's own."""
        return {k: x.astype(moves[k].dtype) for k, x in self.moves.items()}


@dataclasses.dataclass(frozen=True)
class Decay:
    """Removes `weight_decay` times the rule's step scale of each parameter.

    **Arguments:**

    - `mask`: which parameters; see `lopax.optimizer`.
    """

    weight_decay: Any
    mask: Any | Callable[[Params], Any] | None = None

    def factor_at(self, steps: Count) -> Any:
        """What a step after so many is multiplied with: [], or a number."""
        del steps
        return self.weight_decay

    def __call__(self, made: Made, factor: Any = None) -> Made:
        decays = _decaying(self.weight_decay, self.mask, made.params)
        if not any(flag is not False for flag in decays.values()):
            return made
        decay = jnp.reshape(self.weight_decay if factor is None else factor, ())
        rate = jnp.where(made.skipped, 0.0, decay * made.step_scale)
        return made._replace(
            moves={
                name: move - rate * made.named[name].astype(jnp.float32)
                if decays[name]
                else move
                for name, move in made.moves.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Multiply:
    """Multiplies every move.

    **Arguments:**

    - `factor`: a number, or a schedule of it over calls.
    - `every`: calls for each step of the rule.
    """

    factor: Any | optax.Schedule
    every: int = 1

    def factor_at(self, steps: Count) -> Any:
        """What a step after so many is multiplied with: [], or a number."""
        if callable(self.factor):
            return self.factor(steps * self.every)
        return self.factor

    def __call__(self, made: Made, factor: Any = None) -> Made:
        factor = self.factor_at(made.steps) if factor is None else factor
        if not is_real(factor):  # which need not be finite in such a step
            factor = jnp.where(made.skipped, 0.0, jnp.reshape(factor, ()))
        return made._replace(moves={k: factor * x for k, x in made.moves.items()})


def _decaying(weight_decay: Any, mask: Any, params: Params) -> dict[str, Any]:
    """Which tensors decay, by name. Raises `StructureMismatch`."""
    whole = leaves.trained(params)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0.0:
        mask = False
    elif mask is None:
        mask = True
    elif callable(mask):
        mask = mask(params)
    flags = _broadcast(leaves.unbox(mask), whole)
    return by_name(params, jax.tree.structure(whole).unflatten(flags))


def _broadcast(mask: Any, tree: Any) -> list[Any]:
    """An entry of `mask`, a prefix of `tree`, for each leaf of `tree`. What stands in
    the place of nodes without leaves (`optax.MaskedNode`) does not matter."""
    count = len(jax.tree.leaves(tree))
    if count == 0 or isinstance(mask, (bool, np.bool_)) or trees.is_array(mask):
        return [mask] * count
    parts, tree_kind = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    entries, mask_kind = jax.tree.flatten(mask, is_leaf=lambda x: x is not mask)
    if tree_kind != mask_kind or entries == [mask]:
        raise StructureMismatch(
            "mask: it must be a tree of bools like the parameters, or a prefix of "
            f"one, or a function from parameters to one; {mask!r} stands for "
            f"{trees.describe(tree)}"
        )
    return [
        flag for m, t in zip(entries, parts, strict=True) for flag in _broadcast(m, t)
    ]
