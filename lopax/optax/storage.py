"""How a rule's state is kept in an optax state, so that everybody can handle it.

Rules nest a state of several arrays in the place of each parameter. Flax NNX cannot
carry that (there, a parameter's place holds one array), and orbax cannot write arrays
without elements. So here tensors are known by their path names, `dense/w`, instead of
by their place in the user's tree, and placeholders without elements are left out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core import lifting
from lopax._core.errors import ConfigError
from lopax._core.optimizer import OptState
from lopax._core.types import Params, Updates


def by_name(params: Params, tree: Any) -> dict[str, Any]:
    """The leaves of a tree of `params`' structure, by path name.

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
    leaves = jax.tree.structure(params).flatten_up_to(tree)
    return dict(zip(names, leaves, strict=True))


def in_place(params: Params, named: dict[str, Any]) -> Updates:
    """The inverse of `by_name`."""
    leaves = [named[name] for name in _names(params)]
    return jax.tree.structure(params).unflatten(leaves)


def _names(params: Params) -> list[str]:
    names = [leaf.name for leaf in lifting.places(params)]
    # Flax NNX hands its variables (`kernel/value`) to init and bare arrays (`kernel`)
    # to update; the names must not change in between.
    if names and all(name.endswith("/value") for name in names):
        return [name.removesuffix("/value") for name in names]
    return names


def without_placeholders(state: Any, params: dict[str, Any]) -> Any:
    """Arrays [0] in the state of a tensor that has elements become None."""

    def one(x: Any) -> Any:
        return None if jnp.shape(x) == (0,) else x

    return _for_each_tensor(one, state, params)


def with_placeholders(state: Any, params: dict[str, Any]) -> Any:
    """The inverse of `without_placeholders`."""

    def one(x: Any) -> Any:
        return jnp.zeros((0,), jnp.float32) if x is None else x

    return _for_each_tensor(one, state, params)


def _for_each_tensor(fn: Any, state: Any, params: dict[str, Any]) -> Any:
    if not isinstance(state, OptState):
        return state
    tensors = {
        name: part
        if jnp.size(params[name]) == 0
        else jax.tree.map(fn, part, is_leaf=lambda x: x is None)
        for name, part in state.tensors.items()
    }
    return state._replace(tensors=tensors)
