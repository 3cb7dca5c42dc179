"""Momenta kept in bfloat16 or bytes: 10 or 7 instead of 16 bytes a parameter for Celo.

The formats are those of `lopax._core.narrow`; this finds a state's momenta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Int8

from lopax._core import leaves, narrow
from lopax._core import tree as trees
from lopax._core.narrow import FIELDS, Blocks
from lopax._core.optimizer import LearnedOptimizer, OptState
from lopax._core.places import Leaf, places_of
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Flag, Params


class InBlocks(NamedTuple):
    """An array of momenta [*front, *s] in bytes."""

    codes: Int8[Array, "*front *s"]
    units: Float[Array, "*front rows blocks"]  # what a block's codes are multiples of


class Packing(NamedTuple):
    """How a rule's state is stored between steps."""

    start: Callable[[OptState, Params], OptState]
    """Packs a first state, whose momenta are zero."""
    pack: Callable[[OptState, Params], OptState]
    unpack: Callable[[OptState], OptState]
    """Momenta in float32, exactly those that were kept."""
    hold: Callable[[Flag, Any, Any], Any]
    """(skipped, the states before, those after) to the tensors' states to keep."""
    apart: tuple[str, ...] = ()
    """Fields that are not kept as arrays like their tensor."""


def choose(rule: LearnedOptimizer, dtype: str) -> Packing:
    """The packing for a rule and the name of a dtype.

    Raises `ConfigError` for an unknown dtype and for rules without momenta.
    """
    narrow.check(dtype, rule.name, dtype == "float32" or supported(rule))
    if dtype == "float32":
        return Packing(_as_it_is, _as_it_is, lambda state: state, _after)
    if dtype == "bfloat16":
        return Packing(_in_bfloat16, _in_bfloat16, unpack, _after)
    assert isinstance(rule, TensorRule), "see supported"

    def start(state: OptState, params: Params) -> OptState:
        return _in_bytes(rule, state, params, zero_blocks)

    def pack(state: OptState, params: Params) -> OptState:
        step = _updates(state)
        return _in_bytes(rule, state, params, lambda x, n: in_blocks(x, n, step))

    return Packing(start, pack, unpack, _held, FIELDS)


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
    _map_momenta(lambda _, x: found.append(x) or x, state)
    return bool(found)


def unpack(state: OptState) -> OptState:
    """A state to compute with: momenta in float32, exactly those that were kept."""

    def one(_: str, x: Any) -> Array:
        return of_blocks(x) if isinstance(x, InBlocks) else x.astype(jnp.float32)

    return state._replace(tensors=_map_momenta(one, state.tensors))


def _as_it_is(state: OptState, params: Params) -> OptState:
    del params
    return state


def _in_bfloat16(state: OptState, params: Params) -> OptState:
    del params

    def one(_: str, x: Array) -> Array:
        return round_stochastically(x, _updates(state))

    return state._replace(tensors=_map_momenta(one, state.tensors))


def _in_bytes(
    rule: TensorRule,
    state: OptState,
    params: Params,
    make: Callable[[Array, int], Any],
) -> OptState:
    treedef = jax.tree.structure(leaves.trained(params))
    held = treedef.flatten_up_to(state.tensors)

    def of_tensor(leaf: Leaf, tensor: Any) -> Any:
        stacked = rule.view(leaf.name, leaf.shape).copies is not None

        def one(field: str, x: Array) -> Any:
            return make(x, narrow.COPIES[field] + stacked)

        return _map_momenta(one, tensor)

    found = [of_tensor(*pair) for pair in zip(places_of(params), held, strict=True)]
    return state._replace(tensors=treedef.unflatten(found))


def _updates(state: OptState) -> Count:
    return state.iteration - state.skipped


def _after(skipped: Flag, before: Any, after: Any) -> Any:
    """What can be kept is kept as it is, also in a step that is not made."""
    del skipped, before
    return after


def _held(skipped: Flag, before: Any, after: Any) -> Any:
    """Bytes read and written again may differ in the last bit of their unit."""

    def one(old: Any, new: Any) -> Any:
        return trees.select(skipped, old, new) if isinstance(new, InBlocks) else new

    return jax.tree.map(one, before, after, is_leaf=lambda x: isinstance(x, InBlocks))


def round_stochastically(x: Float[Array, "*s"], step: Count) -> BFloat16[Array, "*s"]:
    """bfloat16 neighbours of finite float32 numbers, right on average.

    Numbers that bfloat16 can hold are returned as they are.
    """
    step = step.astype(jnp.int32)
    return narrow.bfloat16(_WORDS, x, step).astype(jnp.bfloat16)


def in_blocks(x: Float[Array, "*n"], front: int, step: Count) -> Any:
    """Finite momenta in bytes, or as they are if their tensor is not kept so.

    **Arguments:**

    - `front`: the number of axes before the tensor's own.
    """
    blocks = Blocks.of(x.shape[front:])
    if blocks is None:
        return x
    parts = _parts(x, x.shape[:front], blocks)
    unit = narrow.units(_WORDS, jnp.max(jnp.abs(parts), -1, keepdims=True))
    codes = narrow.encode(_WORDS, parts, unit, step.astype(jnp.int32))
    codes = codes.astype(jnp.int8)
    return InBlocks(_whole(codes, x.shape, blocks), unit[..., 0])


def zero_blocks(x: Float[Array, "*n"], front: int) -> Any:
    """`in_blocks` of zeros, without the arithmetic, which XLA would do while it
    compiles; lying where x does."""
    blocks = Blocks.of(x.shape[front:])
    if blocks is None:
        return x
    return InBlocks(x.astype(jnp.int8), _parts(x, x.shape[:front], blocks)[..., 0])


def of_blocks(x: InBlocks) -> Float[Array, "*n"]:
    """The numbers that were kept in bytes."""
    front, shape = x.units.ndim - 2, x.codes.shape
    blocks = Blocks.of(shape[front:])
    assert blocks is not None, "see in_blocks"
    codes = _parts(x.codes, shape[:front], blocks).astype(jnp.int32)
    return _whole(narrow.decode(_WORDS, codes, x.units[..., None]), shape, blocks)


def _parts(x: Array, front: tuple[int, ...], blocks: Blocks) -> Array:
    """[*front, rows, blocks, length]"""
    x = x.reshape(*front, blocks.rows, blocks.row)
    if blocks.padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks.padding)])
    return x.reshape(*x.shape[:-1], blocks.blocks, blocks.length)


def _whole(parts: Array, shape: tuple[int, ...], blocks: Blocks) -> Array:
    """The inverse."""
    parts = parts.reshape(*parts.shape[:-2], -1)
    return parts[..., : blocks.row].reshape(shape)


class _Words:
    """`narrow.Words` in JAX."""

    @staticmethod
    def where(condition: Array, x: Array, y: Array) -> Array:
        return jnp.where(condition, x, y)

    @staticmethod
    def bits(x: Array) -> Array:
        return jax.lax.bitcast_convert_type(x, jnp.int32)

    @staticmethod
    def floats(bits: Array) -> Array:
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    @staticmethod
    def bounded(n: Array) -> Array:
        return jnp.minimum(n, 127)


_WORDS = _Words()


def _map_momenta(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """`fn(field, x)` on every momentum field of every NamedTuple in the tree."""

    def is_state(x: Any) -> bool:
        # The user's own tree may have such names too, but not for arrays of the state.
        fields = getattr(x, "_fields", ()) if isinstance(x, tuple) else ()
        return any(f in FIELDS and _is_array(getattr(x, f)) for f in fields)

    def one(node: Any) -> Any:
        if not is_state(node):
            return node
        return node._replace(
            **{f: fn(f, getattr(node, f)) for f in node._fields if f in FIELDS}
        )

    return jax.tree.map(one, tree, is_leaf=is_state)


def _is_array(x: Any) -> bool:
    return isinstance(x, InBlocks) or hasattr(x, "dtype")
