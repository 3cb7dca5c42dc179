"""The arithmetic of a rule: what JAX and torch are asked for, by one set of names.

Arrays are the frameworks' own; operators (`+`, `*`, `**`, comparisons), indexing,
`.reshape(shape)`, `.shape` and `.ndim` are used as they are. Everything else goes
through an `Ops`, with the names of the Python array API where it has one. The rest is
what rules need beside it: products in full float32, averages that torch moves in place,
orthogonal matrices. There is one `Ops` per framework (`lopax.architectures.jax_ops`,
`lopax.torch.ops`), a few lines each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
"""A float32 array of either framework, or a boolean one where that is said."""
Arrays: TypeAlias = Mapping[str, Array]
"""Some by name."""
Shape: TypeAlias = tuple[int, ...]
Axes: TypeAlias = "int | tuple[int, ...]"


class ElementMLP(Protocol):
    """A small network applied to every element."""

    @property
    def begun(self) -> Sequence[Array]:
        """What has come of the `lines`, [*lead, ..., *s] with some axes of size one."""
        ...

    def __call__(
        self, channels: Iterable[Array], begun: Sequence[Array] = ()
    ) -> list[Array]:
        """The outputs [*lead, *s] each.

        **Arguments:**

        - `channels`: [*lead, *s], or with axes of size one, without `lines`.
        - `begun`: of the same part of the tensor.
        """
        ...


class Ops(Protocol):
    """One framework's arithmetic. Arrays are float32 throughout."""

    def constant(self, values: Any) -> Array:
        """A number or (nested) tuple of numbers; not to be written to."""
        ...

    def integer(self, value: int) -> Array:
        """[] int32, of which the state may keep what is counted from it."""
        ...

    def zeros(self, shape: Shape) -> Array: ...
    def eye(self, size: int) -> Array: ...
    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array: ...
    def concat(self, arrays: Sequence[Array], axis: int = 0) -> Array: ...
    def unstack(self, x: Array, axis: int) -> Sequence[Array]:
        """The arrays along an axis, apart."""
        ...

    def broadcast_to(self, x: Array, shape: Shape) -> Array: ...
    def sort(self, x: Array) -> Array:
        """In rising order along the last axis."""
        ...

    def take(self, x: Array, index: Array) -> Array:
        """The element of x [n] at the number `index` [] >= 0, rounded down."""
        ...

    def sum(self, x: Array, axis: Axes | None = None, keepdims: bool = False) -> Array:
        """Over the given axes, all by default; 0 over none."""
        ...

    def sum_squares(self, x: Array, axis: Axes, keepdims: bool = False) -> Array: ...
    def dot(self, x: Array, y: Array, axis: Axes) -> Array:
        """The sum of products over the given axes, the last ones."""
        ...

    def mix(self, weights: Sequence[Array], arrays: Sequence[Array]) -> Array:
        """The sum of weights times arrays, as a new array; the weights go with them."""
        ...

    def max(self, x: Array, axis: int) -> Array: ...
    def any(self, x: Array, axis: int) -> Array:
        """Which are true, or of numbers other than zero."""
        ...

    def all(self, x: Array, axis: int) -> Array: ...
    def where(self, condition: Array, x: Array, y: Array | float) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def sign(self, x: Array) -> Array: ...
    def square(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def rsqrt(self, x: Array) -> Array: ...
    def bounded_rsqrt(self, x: Array) -> Array:
        """1 / sqrt(x), and 0 for what has left float32's range."""
        ...

    def exp(self, x: Array) -> Array: ...
    def expm1(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def log10(self, x: Array) -> Array: ...
    def log1p(self, x: Array) -> Array: ...
    def sin(self, x: Array) -> Array: ...
    def cos(self, x: Array) -> Array: ...
    def tanh(self, x: Array) -> Array: ...
    def sigmoid(self, x: Array) -> Array: ...
    def relu(self, x: Array) -> Array: ...
    def isfinite(self, x: Array) -> Array: ...
    def clip(self, x: Array, low: float | None, high: float | None) -> Array: ...
    def maximum(self, x: Array, y: Array | float) -> Array: ...
    def minimum(self, x: Array, y: Array | float) -> Array: ...
    def stop_gradient(self, x: Array) -> Array: ...

    def matmul(self, a: Array, b: Array) -> Array:
        """In full float32, whatever the surrounding program prefers."""
        ...

    def ema(self, old: Array, new: Array, decay: Array | float) -> Array:
        """decay * old + (1 - decay) * new for an array of the state.

        torch moves `old` in place (not at all in a step that is skipped), so it must
        not be used afterwards. `summarise` may call it, too: there it is a new array.
        """
        ...

    def adam(
        self,
        size: Array,
        momentum: Array,
        second: Array,
        inside: Array | float,
        outside: Array | float,
    ) -> Array:
        """size * momentum / (outside + sqrt(second + inside)), a new array."""
        ...

    def element_mlp(
        self,
        place: Any,
        network: Any,
        scales: Sequence[Array] | None,
        constants: Array | None = None,
        lines: Mapping[int, Array] = {},
    ) -> ElementMLP:
        """A small network to be applied to every element.

        **Arguments:**

        - `network`: "w0" [channels + constants, h], "b0", "w1", ...; or with the axes
            `lead` in front, of which each may be one.
        - `scales`: for each channel a factor [*lead]; None: there are none.
        - `constants`: [*lead, C] or [C] inputs that are the same for all elements.
        - `lines`: by their number, channels whose axes of size one are to be made use
            of.
        """
        ...

    def parts(self, place: Any, arrays: Sequence[Array]) -> Iterable[Sequence[Array]]:
        """A tensor's arrays [*lead, ..., *s] in ranges of its first axis, in order, so
        small that what is made of them stays in a cache; or as they are. Arrays whose
        first axis has size one are in every range. The first array has all axes.
        """
        ...

    def joined(
        self, place: Any, parts: Iterable[Array], like: Array, spare: bool
    ) -> Array:
        """What was made of the `parts` of arrays, [*lead, *s], as one array of the
        shape of `like`; with `spare` torch may put it in its place."""
        ...

    def orthogonalize(self, x: Array, place: Any, method: str) -> Any:
        """Nearly orthogonal matrices of x = `place.as_matrix(...)`, to be used with
        `yield from`: it may ask for sums. `method`: one of `lopax._core.polar.CHOICES`.
        """
        ...

    def orthogonalize_each(self, x: Array, place: Any, method: str) -> Any:
        """The same of tensors x [*lead, *s] of rank two or more, whose matrices lie in
        the axes `place.matrix`."""
        ...

    def every(
        self, number: int, count: Array, make: Callable[[], Any], shape: Shape
    ) -> Any:
        """To be used with `yield from`: what `make()`, which may ask for sums, returns
        [*shape] if `count` [] is a multiple of `number`, else zeros. It is run in vain
        only under `vmap` and in a compiled step of torch."""
        ...

    def reached(self, axis: int, averages: Sequence[Array]) -> Array | None:
        """Where along an axis some average is not zero; None if it is known that that
        is everywhere."""
        ...


class Draw(Protocol):
    """Where the first values of meta-parameters come from."""

    def edit(self, x: Array, keep: Any, put: Any) -> Array:
        """x * keep + put, for numbers or numpy arrays that go with it."""
        ...

    def split(self, key: Any, number: int) -> Sequence[Any]:
        """Independent keys."""
        ...

    def several(self, key: Any, number: int, make: Callable[[Any], Any]) -> Any:
        """`number` of what `make` draws from a key, a dict of arrays, stacked in
        front of their axes."""
        ...

    def full(self, shape: Shape, value: float = 0.0) -> Array: ...
    def truncated_normal(self, key: Any, shape: Shape, std: float) -> Array:
        """`std` times a standard normal cut off at +-2."""
        ...

    def orthogonal(self, keys: Sequence[Any], size: int) -> Array:
        """Random orthogonal matrices side by side, [size, keys x size]."""
        ...


class Shapes:
    """A `Draw` that only notes the shapes of what it is asked for."""

    def split(self, key: Any, number: int) -> Sequence[Any]:
        return [key] * number

    def edit(self, x: Shape, keep: Any, put: Any) -> Shape:
        del keep, put
        return x

    def several(self, key: Any, number: int, make: Callable[[Any], Any]) -> Any:
        found = make(key)
        return {name: (number, *shape) for name, shape in found.items()}

    def full(self, shape: Shape, value: float = 0.0) -> Shape:
        del value
        return shape

    def truncated_normal(self, key: Any, shape: Shape, std: float) -> Shape:
        del key, std
        return shape

    def orthogonal(self, keys: Sequence[Any], size: int) -> Shape:
        return size, size * len(keys)
