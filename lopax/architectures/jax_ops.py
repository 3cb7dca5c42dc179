"""JAX's arithmetic under the names rules use (`lopax.rules.ops`)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core import roots
from lopax._core.types import Key, Theta
from lopax.blocks.orthogonalize import orthogonalize
from lopax.nets import dense_mlp, initializers
from lopax.rules.form import Place, Steps, complete


class ElementMLP:
    """See `lopax.rules.ops.ElementMLP`; all of it is done when it is called."""

    def __init__(
        self,
        network: Theta,
        scales: Sequence[Array] | None,
        told: Sequence[Array],
        lines: Mapping[int, Array],
        unrolled: bool | None,
    ):
        self._network, self._scales, self._told = network, scales, told
        self._lines, self._unrolled = tuple(lines), unrolled
        self.begun = tuple(lines.values())

    def __call__(
        self, channels: Iterable[Array], begun: Sequence[Array] = ()
    ) -> list[Array]:
        found = dict(zip(self._lines, begun, strict=True))
        others = (c for c in itertools.count() if c not in found)
        found |= dict(zip(others, channels, strict=False))
        ordered = [found[c] for c in range(len(found))]
        scales = [jnp.ones((), jnp.float32)] * (len(found) + len(self._told))
        if self._scales is not None:
            scales[: len(found)] = self._scales
        inputs = [*ordered, *self._told]
        return dense_mlp.apply(self._network, inputs, scales, self._unrolled)


class JaxOps:
    """An `lopax.rules.ops.Ops`; all of it can be traced, mapped and differentiated.

    **Arguments:**

    - `unrolled`: how `element_mlp` computes, see `dense_mlp.apply`.
    """

    def __init__(self, unrolled: bool | None = None):
        self.unrolled = unrolled

    stack = staticmethod(jnp.stack)
    broadcast_to = staticmethod(jnp.broadcast_to)
    sort = staticmethod(jnp.sort)
    sum = staticmethod(jnp.sum)
    any = staticmethod(jnp.any)
    all = staticmethod(jnp.all)
    max = staticmethod(jnp.max)
    where = staticmethod(jnp.where)
    abs = staticmethod(jnp.abs)
    sign = staticmethod(jnp.sign)
    square = staticmethod(jnp.square)
    sqrt = staticmethod(roots.sqrt)
    rsqrt = staticmethod(roots.rsqrt)
    exp = staticmethod(jnp.exp)
    expm1 = staticmethod(jnp.expm1)
    log = staticmethod(jnp.log)
    log10 = staticmethod(jnp.log10)
    log1p = staticmethod(jnp.log1p)
    sin = staticmethod(jnp.sin)
    cos = staticmethod(jnp.cos)
    tanh = staticmethod(jnp.tanh)
    sigmoid = staticmethod(jax.nn.sigmoid)
    relu = staticmethod(jax.nn.relu)
    isfinite = staticmethod(jnp.isfinite)
    clip = staticmethod(jnp.clip)
    maximum = staticmethod(jnp.maximum)
    minimum = staticmethod(jnp.minimum)
    stop_gradient = staticmethod(jax.lax.stop_gradient)

    def constant(self, values: Any) -> Array:
        return jnp.asarray(values, jnp.float32)

    def integer(self, value: int) -> Array:
        return jnp.asarray(value, jnp.int32)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return jnp.zeros(shape, jnp.float32)

    def eye(self, size: int) -> Array:
        return jnp.eye(size, dtype=jnp.float32)

    def concat(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        return jnp.concatenate(arrays, axis=axis)

    def take(self, x: Array, index: Array) -> Array:
        return x[index.astype(jnp.int32)]

    def matmul(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision="highest")

    def sum_squares(self, x: Array, axis: Any, keepdims: bool = False) -> Array:
        return jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)

    def dot(self, x: Array, y: Array, axis: Any) -> Array:
        return jnp.sum(x * y, axis=axis)

    def mix(self, weights: Sequence[Array], arrays: Sequence[Array]) -> Array:
        first, *rest = (w * x for w, x in zip(weights, arrays, strict=True))
        return sum(rest, first)

    def bounded_rsqrt(self, x: Array) -> Array:
        # Of an infinity in a constant, compilers make what they like.
        return jnp.where(x < 3e38, roots.rsqrt(jnp.minimum(x, 3e38)), 0.0)

    def adam(
        self, size: Array, momentum: Array, second: Array, inside: Any, outside: Any
    ) -> Array:
        return size * momentum / (outside + roots.sqrt(second + inside))

    def ema(self, old: Array, new: Array, decay: Any) -> Array:
        return decay * old + (1.0 - decay) * new

    def unstack(self, x: Array, axis: int) -> list[Array]:
        behind = (slice(None),) * (-1 - axis)
        return [x[(..., k, *behind)] for k in range(x.shape[axis])]

    def element_mlp(
        self,
        place: Place,
        network: Theta,
        scales: Sequence[Array] | None,
        constants: Array | None = None,
        lines: Mapping[int, Array] = {},
    ) -> ElementMLP:
        del place
        told = () if constants is None else tuple(constants)
        return ElementMLP(network, scales, told, lines, self.unrolled)

    def parts(self, place: Place, arrays: Sequence[Array]) -> list[Sequence[Array]]:
        del place
        return [arrays]

    def joined(
        self, place: Place, parts: Iterable[Array], like: Array, spare: bool
    ) -> Array:
        del place, spare
        (found,) = parts
        return jnp.broadcast_to(found, like.shape)

    def orthogonalize(self, x: Array, place: Place, method: str) -> Steps:
        del place
        yield from ()
        return orthogonalize(x, method)

    orthogonalize_each = orthogonalize

    def every(
        self, number: int, count: Array, make: Callable[[], Steps], shape: Any
    ) -> Steps:
        yield from ()
        if number == 1:
            return complete(make())
        due = count % number == 0
        return jax.lax.cond(due, lambda: complete(make()), lambda: self.zeros(shape))

    def reached(self, axis: int, averages: Sequence[Array]) -> Array:
        return functools.reduce(
            jnp.logical_or, [jnp.any(average, axis=axis) for average in averages]
        )


class JaxDraw:
    """An `lopax.rules.ops.Draw` from JAX's random keys."""

    def split(self, key: Key, number: int) -> Any:
        return jax.random.split(key, number)

    def several(self, key: Key, number: int, make: Callable[[Key], Any]) -> Any:
        return jax.vmap(make)(jax.random.split(key, number))

    def edit(self, x: Array, keep: Any, put: Any) -> Array:
        return x * jnp.asarray(keep, jnp.float32) + jnp.asarray(put, jnp.float32)

    def full(self, shape: tuple[int, ...], value: float = 0.0) -> Array:
        return jnp.full(shape, value, jnp.float32)

    def truncated_normal(self, key: Key, shape: tuple[int, ...], std: float) -> Array:
        return initializers.truncated_normal(key, shape, std)

    def orthogonal(self, keys: Sequence[Key], size: int) -> Array:
        make = jax.nn.initializers.orthogonal()
        return jnp.concatenate(
            [make(k, (size, size), jnp.float32) for k in keys], axis=1
        )
