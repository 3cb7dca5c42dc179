"""From one tensor to a tree: guards, and stepping equal tensors together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lopax._core import roots
from lopax._core import tree as trees
from lopax._core.errors import ConfigError, StructureMismatch
from lopax._core.leaves import is_plain_number
from lopax._core.numbers import whole_steps
from lopax._core.places import Leaf
from lopax._core.routing import Seen
from lopax._core.types import Count, Flag, Scalar

GROUP_FROM = 3
"""Fewer equal tensors than this are stepped one by one."""

GROUP_ELEMENTS = 2**10
"""Larger tensors are not looped over. On two cores a loop over 64 elements each is
faster than its unrolled form, one over 3x3x16x16 half as fast: XLA runs independent
operations side by side, but not the rounds of a loop."""

GROUP_TOTAL = 2**22
"""Larger tensors that are alike are stepped as one, if they have no more elements than
this together: stacking costs a copy of gradients, parameters and state."""


F = TypeVar("F", bound=Callable[..., Any])


def own_arithmetic(fn: F) -> F:
    """`fn` under numpy's rules of promotion, whatever the caller has set.

    `jax_numpy_rank_promotion="raise"` and `jax_numpy_dtype_promotion="strict"` find
    mistakes in a user's program; what rules broadcast, they mean.
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return fn(*args, **kwargs)

    return cast(F, call)


def check_states(
    places: Sequence[Leaf],
    views: Sequence[Seen],
    params: Sequence[Any],
    states: Sequence[Any],
    starters: Sequence[Callable[[tuple[int, ...]], Any]],
) -> None:
    """Raises `StructureMismatch` for states of tensors of another shape; states and
    tensors that are alike are looked at once.

    **Arguments:**

    - `starters`: for each tensor, from a shape to its first state.
    """
    seen = set()
    for leaf, view, param, state, start in zip(
        places, views, params, states, starters, strict=True
    ):
        found = jax.tree.map(jnp.shape, state)
        key = (param.shape, str(found), view)
        if key in seen:
            continue
        seen.add(key)
        want = jax.eval_shape(lambda start=start, p=param: start(p.shape or (1,)))
        shapes = [str(jax.tree.map(jnp.shape, want)), str(found)]
        if shapes[0] != shapes[1]:
            raise StructureMismatch.between(
                f"the optimizer's state of the parameter {leaf.name!r} (of shape "
                f"{list(leaf.shape)})",
                trees.describe(want),
                trees.describe(state),
                "Was the parameter resized or replaced? opt.init(params) makes "
                "a state for the parameters as they are now.",
            )


def as_tensor(x: Any) -> Any:
    """float32, and rank at least one: scalars become shape (1,)."""
    x = jnp.asarray(x, jnp.float32)
    return x.reshape(1) if x.ndim == 0 else x


def horizon(num_steps: Any) -> Count:
    """A number of updates as [] int32, an array of its own.

    Accepted: an integer, a float that is whole, an array of one such, traced or not.
    Raises `ConfigError` as `numbers.whole_steps`.
    """
    if isinstance(num_steps, Tracer):
        return num_steps.astype(jnp.int32).reshape(())
    return jnp.array(whole_steps(num_steps), jnp.int32)


def scalar_loss(value: Any) -> Any:
    """A loss of one element as [] float32; None stays None. Raises `ConfigError`."""
    if value is None:
        return None
    if not _is_numeric(value):
        raise ConfigError(
            f"value = {value!r}: the loss must be one real number, or an array of one"
        )
    if jnp.size(value) != 1 or jnp.iscomplexobj(value):
        raise ConfigError(
            f"value of shape {jnp.shape(value)} and dtype {jnp.result_type(value)}: "
            "the loss must be one real number; take the mean over the batch"
        )
    return jnp.asarray(value, jnp.float32).reshape(())


def _is_numeric(x: Any) -> bool:
    """Whether this is a number or an array of numbers."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return is_plain_number(x) or hasattr(x, "__jax_array__")
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def shrunk(x: Any) -> tuple[Any, Any]:
    """`x` times a power of two, and that power []: one, unless squares of the elements
    could leave float32's range."""
    if not x.size:
        return x, jnp.ones((), jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    scale = jnp.where(largest > 1e15, jnp.float32(2.0**-80), jnp.float32(1.0))
    return x * scale, scale


def rms(x: Any) -> Scalar:
    """Root mean square over all elements; 0 if there are none."""
    small, scale = shrunk(x)
    if not x.size:
        return jnp.zeros((), jnp.float32)
    return roots.sqrt(jnp.mean(jnp.square(small))) / scale


def largest(x: Any) -> Scalar:
    """The largest magnitude of all elements, not finite if one of them is not; 0 if
    there are none."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    if not x.size:
        return jnp.zeros((), jnp.float32)
    return jnp.max(jnp.abs(x if x.dtype.itemsize > 2 else x.astype(jnp.float32)))


def all_zero(sizes: Sequence[Scalar], places: Sequence[Leaf]) -> Flag:
    """Whether the gradients of all matrices, or where there is none, of all tensors
    are exactly zero.

    **Arguments:**

    - `sizes`: what is `largest` in each gradient.
    - `places`: the tensors, as the rule sees them.
    """
    full = [(s, p) for s, p in zip(sizes, places, strict=True) if 0 not in p.shape]
    seen = [s for s, p in full if len(p.shape) > 1] or [s for s, _ in full]
    if not seen:
        return jnp.asarray(False)
    return jnp.all(jnp.stack([s.astype(jnp.float32) for s in seen]) == 0.0)


def all_finite(grads: Sequence[Any], value: Any) -> Flag:
    """One flag for the whole step: there is no flaw."""
    found = flaws(grads, value)
    return ~jnp.any(found) if found.size else jnp.asarray(True)


def flaws(grads: Sequence[Any], value: Any) -> Any:
    """[tensors, and one for a loss] bool: whether something in it is not finite;
    `x * 0` is 0 if and only if x is finite.

    The flags are stacked before they are combined. A chain of `&` over the tensors
    would be inlined by XLA into the loop of every tensor, so that program size and
    compile time grew with the square of their number.
    """
    zeros = [jnp.sum(g * 0.0) if g.ndim else g for g in grads]
    if value is not None:
        zeros.append(scalar_loss(value))
    if not zeros:
        return jnp.zeros((0,), bool)
    return jnp.stack([x.astype(jnp.float32) for x in zeros]) * 0.0 != 0.0


def guarded(
    step: Callable[[Any], tuple[Any, Any]],
    grad: Any,
    state: Any,
    finite: Flag,
    bound: Any,
    apart: bool = False,
) -> tuple[Any, Any]:
    """`step` of the gradient clipped to +- bound if `finite`, else no change.

    `apart`: on a CPU, as a program of its own that may not be run at all, for steps of
    many operations. XLA would copy those into the loops of all that use the result: 24
    equal tensors took five times as long to compile, and more to run.
    """

    def stepped() -> tuple[Any, Any]:
        return step(jnp.clip(jnp.where(finite, grad, 0.0), -bound, bound))

    # A GPU would wait for the flag.
    if apart and jax.default_backend() == "cpu":
        return jax.lax.cond(finite, stepped, lambda: (jnp.zeros_like(grad), state))
    delta, new = stepped()
    return jnp.where(finite, delta, 0.0), trees.select(finite, new, state)


def map_equal_together(
    fn: Callable[..., Any],
    leaves: Sequence[Leaf],
    keys: Sequence[Hashable],
    operands: Sequence[tuple[Any, ...]],
) -> list[Any]:
    """`[fn(leaf, *args) for leaf, args in zip(leaves, operands)]`, where tensors that
    are alike share one traced body, and all but the largest one compiled body.

    Small ones are stacked and looped over: the body of a loop is the very program that
    a tensor alone would run. Larger ones are stacked and stepped together by `vmap`,
    which uses all cores; the barriers keep XLA from inlining the stacking of all of
    them into every one of a rule's many loops. What is too large to be copied is
    stepped one by one, from one traced body.

    **Arguments:**

    - `keys`: what `fn` depends on of a leaf, beside its operands; leaves with equal
        keys and operands of equal structure, shapes and dtypes share the body, which
        sees the first leaf of the group. None: never shared.
    - `operands`: per leaf a tuple of pytrees, the first an array of the tensor's size.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (key, args) in enumerate(zip(keys, operands, strict=True)):
        groups.setdefault((i,) if key is None else (key, _signature(args)), []).append(
            i
        )
    results: list[Any] = [None] * len(operands)
    for members in groups.values():
        first, size = leaves[members[0]], operands[members[0]][0].size
        if len(members) < GROUP_FROM or size * len(members) > GROUP_TOTAL:
            body = fn if len(members) == 1 else jax.jit(fn, static_argnums=0)
            for i in members:
                results[i] = body(first, *operands[i])
            continue
        stacked = jax.tree.map(
            lambda *xs: jnp.stack(xs), *(operands[i] for i in members)
        )
        if size > GROUP_ELEMENTS:
            stacked = jax.lax.optimization_barrier(stacked)
            together = jax.vmap(lambda args, leaf=first: fn(leaf, *args))(stacked)
            mapped = jax.lax.optimization_barrier(together)
        else:
            mapped = jax.lax.map(lambda args, leaf=first: fn(leaf, *args), stacked)
        for row, i in enumerate(members):
            results[i] = jax.tree.map(lambda x, row=row: x[row], mapped)
    return results


def _signature(args: Any) -> Hashable:
    """Structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(args)
    return treedef, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
