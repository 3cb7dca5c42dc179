"""How a rule's state is kept in an optax state, so that everybody can handle it.

Rules nest a state of several arrays in the place of each tensor. Flax NNX cannot
carry that (there, a parameter's place holds one array), and orbax cannot write arrays
without elements. So here tensors are known by their path names, `dense/w`, instead of
by their place in the user's tree, and placeholders without elements are left out.

What has its tensor's own shape is kept as optax's own optimizers keep it, as a tree
like the parameters, where `optax.tree_map_params` finds it (`Kept.like`). Boxes of the
parameters (Flax's sharding metadata) are put around the arrays of the state, too.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopax._core import leaves, placing
from lopax._core import tree as trees
from lopax._core.errors import ConfigError, StructureMismatch
from lopax._core.optimizer import LearnedOptimizer, OptState
from lopax._core.places import Leaf, places_of
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Params, Theta, Updates
from lopax.optax import boxes


class Kept(NamedTuple):
    """The states of all tensors, in place of `OptState.tensors`."""

    like: dict[str, Any]  # field of the rule's state -> a tree like the parameters
    rest: dict[str, Any]  # path name -> what else a tensor's state consists of


def by_name(params: Params, tree: Any) -> dict[str, Any]:
    """The leaves of a tree of the structure of `leaves.trained(params)`, by path name.

    Raises `ConfigError` if two parameters have one name, as `{"a/b": x}` and
    `{"a": {"b": y}}` would.
    """
    names = _names(params)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"two parameters are called {twice[0]!r}; rename one of them, so that "
            "each has a path of its own"
        )
    treedef = jax.tree.structure(leaves.trained(params))
    return dict(zip(names, treedef.flatten_up_to(tree), strict=True))


def in_place(params: Params, named: dict[str, Any]) -> Updates:
    """The inverse of `by_name`, in the structure of `params`."""
    treedef = jax.tree.structure(leaves.trained(params))
    moves = treedef.unflatten([named[name] for name in _names(params)])
    return leaves.in_place(params, moves)


def _names(params: Params) -> list[str]:
    names = [leaf.name for leaf in places_of(params)]
    # A tree of boxes that `leaves` does not know.
    if names and all(name.endswith("/value") for name in names):
        return [name.removesuffix("/value") for name in names]
    return names


class Storage:
    """How the states of one rule with one theta are kept."""

    def __init__(
        self, rule: LearnedOptimizer, theta: Theta, apart: tuple[str, ...] = ()
    ):
        """`apart`: fields that are not kept like their tensor, whatever they are."""
        self._rule, self._theta, self._apart = rule, theta, apart

    def fresh(self, state: Any, params: Params) -> Any:
        """A new state as it is kept, with the parameters' boxes around it."""
        return self._pack(state, params, by_name(params, leaves.nodes(params)))

    def pack(self, state: Any, params: Params, before: Any) -> Any:
        """A state as it is kept, boxed as the kept one `before` it."""
        return boxed_as(before, self._pack(state, params, {}))

    def unpack(self, state: Any, params: Params) -> Any:
        """The state as the rule knows it. Raises `StructureMismatch` for a state of
        parameters of other names."""
        if not self._applies(state):
            return state
        kept: Kept = state.tensors
        want, have = trees.describe(self._shared), trees.describe(state.shared)
        if want.keys() != have.keys():
            raise StructureMismatch.between(
                f"what tensors share in the state of {self._rule.name!r}",
                dict.fromkeys(want, "an array"),
                dict.fromkeys(have, "an array"),
                "Was it saved by another rule, or with other settings?",
            )
        places = self._places(params)
        if kept.rest.keys() != places.keys():
            raise StructureMismatch.between(
                "the optimizer's state",
                dict.fromkeys(kept.rest, "a parameter"),
                dict.fromkeys(places, "a parameter"),
                "Were parameters renamed, added or removed? opt.init(params) makes a "
                "state for the parameters as they are now.",
            )
        like = {
            field: by_name(params, leaves.parts("the optimizer's state", params, tree))
            for field, tree in kept.like.items()
        }
        shapes: dict[Any, Any] = {}
        tensors = {}
        for name, leaf in places.items():
            part = leaves.unbox(kept.rest[name])
            if math.prod(leaf.shape):
                part = jax.tree.map(_or_empty, part, is_leaf=lambda x: x is None)
            if like:
                part = part._replace(**{field: x[name] for field, x in like.items()})
                key = (leaf.shape, jax.tree.structure(part))
                if key not in shapes:
                    start = self._starter(leaf)
                    where = leaf.shape or (1,)
                    shapes[key] = jax.eval_shape(lambda start=start, s=where: start(s))
                part = part._replace(
                    **{
                        f: getattr(part, f).reshape(getattr(shapes[key], f).shape)
                        for f in like
                    }
                )
            tensors[name] = part
        return state._replace(tensors=tensors)

    def placeholder(self, params: Any) -> Any:
        """The state of `optax.tree_map_params`' placeholder for all parameters: it
        where there is a tree like them, zero in the place of everything else."""
        rule = self._rule
        if not isinstance(rule, TensorRule):
            return 0
        shared = self._shared
        like = dict.fromkeys(self._like, params)
        return OptState(0, 0, 0, jax.tree.map(lambda _: 0, shared), Kept(like, 0))  # type: ignore[arg-type]

    def _applies(self, state: Any) -> bool:
        return isinstance(state, OptState) and isinstance(self._rule, TensorRule)

    @property
    def _like(self) -> tuple[str, ...]:
        fields: tuple[str, ...] = self._rule.param_like  # type: ignore[attr-defined]
        return tuple(field for field in fields if field not in self._apart)

    def _places(self, params: Params) -> dict[str, Leaf]:
        named = by_name(params, leaves.trained(params))
        return {leaf.name: leaf for leaf in places_of(named)}

    @functools.cached_property
    def _shared(self) -> Any:
        """The shapes of what tensors share, of a single one."""
        init: Any = self._rule.init_shared  # type: ignore[attr-defined]
        return jax.eval_shape(lambda: init(self._theta, jnp.ones((), jnp.int32), 1))

    def _starter(self, leaf: Leaf) -> Any:
        return self._rule.starter(self._theta, leaf)  # type: ignore[attr-defined]

    def _pack(self, state: Any, params: Params, nodes: dict[str, Any]) -> Any:
        if not self._applies(state):
            return state
        fields = self._like
        named = by_name(params, leaves.trained(params))
        like = {
            field: in_place(
                params,
                {
                    name: getattr(part, field).reshape(named[name].shape)
                    for name, part in state.tensors.items()
                },
            )
            for field in fields
        }
        rest = {}
        for name, leaf in self._places(params).items():
            part = state.tensors[name]
            if leaves.is_box(nodes.get(name)):
                axes = placing.axes(self._starter(leaf), leaf.shape or (1,))
                part = jax.tree.map(
                    lambda a, x, box=nodes[name]: boxes.around(box, a.of, x),
                    axes,
                    part,
                    is_leaf=placing.is_axes,
                )
            if fields:
                part = part._replace(**dict.fromkeys(fields))
            if math.prod(leaf.shape):
                part = jax.tree.map(_or_none, part)
            rest[name] = part
        return state._replace(tensors=Kept(like, rest))


def boxed_as(before: Any, tree: Any) -> Any:
    """A tree with the boxes that are around the arrays of an older one like it."""
    treedef, found = jax.tree.structure(before), jax.tree.leaves(tree)
    return treedef.unflatten(found) if treedef.num_leaves == len(found) else tree


def is_placeholder(params: Any) -> bool:
    """Whether these are not parameters, but what `optax.tree_map_params` has for
    them."""
    return type(params).__name__ == "_ParamsPlaceholder"


def _or_none(x: Any) -> Any:
    return None if jnp.shape(x) == (0,) else x


def _or_empty(x: Any) -> Any:
    return jnp.zeros((0,), jnp.float32) if x is None else x
