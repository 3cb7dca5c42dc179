"""Momenta kept in bfloat16: 10 instead of 16 bytes a parameter for Celo.

Only what is stored is narrow; a step computes in float32. Rounding to nearest would
freeze slow momenta: with decay 0.999 a step changes them by a thousandth, and
bfloat16 resolves half a per cent. So they are rounded stochastically, up with
probability equal to the remainder, which keeps their mean right. The random bits are
a hash of the number to be rounded and of the step, so that there is no key to carry,
and a repeated run repeats them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from lopax._core.config import check_one_of
from lopax._core.errors import ConfigError
from lopax._core.optimizer import LearnedOptimizer, OptState
from lopax._core.places import Leaf
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count

DTYPES = ("float32", "bfloat16")
FIELDS = ("momentum", "momenta")
"""Names of the fields of a tensor's state that may be narrow."""


class Packing(NamedTuple):
    """How a rule's state is stored between steps."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def choose(rule: LearnedOptimizer, dtype: str) -> Packing:
    """The packing for a rule and the name of a dtype.

    Raises `ConfigError` for an unknown dtype and for rules without momenta.
    """
    check_one_of("momentum_dtype", dtype, DTYPES)
    if dtype == "float32":
        return Packing(lambda state: state, lambda state: state)
    if not supported(rule):
        raise ConfigError(
            f"momentum_dtype = {dtype!r}: the state of {rule.name!r} has no momenta of "
            "its own; use momentum_dtype='float32'"
        )
    return Packing(pack, unpack)


def supported(rule: LearnedOptimizer) -> bool:
    """Whether the rule's state has fields of a name in `FIELDS`."""
    theta = jax.eval_shape(rule.init_theta, jax.random.key(0))
    if not isinstance(rule, TensorRule):
        return False
    # One tensor's state, not a tree's: some rules take one network's tree only.
    param = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    place = Leaf(0, "w", (2, 2))
    state = jax.eval_shape(lambda t, p: rule.init_leaf(t, place, p), theta, param)
    found = []
    _map_momenta(lambda x: found.append(x) or x, state)
    return bool(found)


def pack(state: OptState) -> OptState:
    """A state to be kept: momenta in bfloat16."""

    def one(x: Array) -> Array:
        return round_stochastically(x, state.iteration)

    return state._replace(tensors=_map_momenta(one, state.tensors))


def unpack(state: OptState) -> OptState:
    """A state to compute with: momenta in float32, exactly those that were kept."""

    def one(x: Array) -> Array:
        return x.astype(jnp.float32)

    return state._replace(tensors=_map_momenta(one, state.tensors))


def round_stochastically(x: Float[Array, "*s"], step: Count) -> BFloat16[Array, "*s"]:
    """bfloat16 neighbours of finite float32 numbers, right on average.

    Numbers that bfloat16 can hold are returned as they are.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = bits ^ (step.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    noise = noise * jnp.uint32(0x85EBCA6B)
    noise = (noise ^ (noise >> 15)) * jnp.uint32(0xC2B2AE35)
    # Sixteen random bits below the sixteen that stay: the sum carries into those with
    # the right probability, and the rest is cut off.
    kept = (bits + (noise >> 16)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def _map_momenta(fn: Callable[[Any], Any], tree: Any) -> Any:
    """`fn` on every momentum field of every NamedTuple in the tree."""

    def is_state(x: Any) -> bool:
        # The user's own tree may have such names too, but not for arrays of the state.
        fields = getattr(x, "_fields", ()) if isinstance(x, tuple) else ()
        return any(f in FIELDS and hasattr(getattr(x, f), "dtype") for f in fields)

    def one(node: Any) -> Any:
        if not is_state(node):
            return node
        return node._replace(
            **{f: fn(getattr(node, f)) for f in node._fields if f in FIELDS}
        )

    return jax.tree.map(one, tree, is_leaf=is_state)
