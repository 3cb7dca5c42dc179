"""torch's arithmetic under the names rules use (`lopax.rules.ops`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopax.rules.form import Place, Steps, Sum
from lopax.torch import finite, pieces
from lopax.torch.element_mlp import ElementMLP
from lopax.torch.orthogonalize import steps as orthogonal_steps
from lopax.torch.product import product

COUNT = "count"
"""Among the constants: a count on the device, and its value."""


class TorchOps:
    """An `lopax.rules.ops.Ops` on one device.

    **Arguments:**

    - `alive`: [] 1.0, or 0.0 in a step that is skipped. With it `ema` moves its first
        argument in place; without it, nothing is changed.
    - `constants`: those made so far, so that none is sent to a device twice, and what
        the host knows of the last count.
    """

    abs = staticmethod(torch.abs)
    sign = staticmethod(torch.sign)
    square = staticmethod(torch.square)
    sqrt = staticmethod(torch.sqrt)
    rsqrt = staticmethod(torch.rsqrt)
    exp = staticmethod(torch.exp)
    expm1 = staticmethod(torch.expm1)
    log = staticmethod(torch.log)
    log10 = staticmethod(torch.log10)
    log1p = staticmethod(torch.log1p)
    sin = staticmethod(torch.sin)
    cos = staticmethod(torch.cos)
    tanh = staticmethod(torch.tanh)
    sigmoid = staticmethod(torch.sigmoid)
    relu = staticmethod(torch.relu)
    isfinite = staticmethod(torch.isfinite)

    def __init__(
        self,
        device: torch.device,
        constants: dict[Any, Any],
        alive: Tensor | None = None,
    ):
        self.device, self.alive, self.constants = device, alive, constants

    def constant(self, values: Any) -> Tensor:
        try:
            return self.constants[values]
        except (KeyError, TypeError):  # a list is no key
            made = torch.tensor(values, dtype=torch.float32, device="cpu")
            return self.constants.setdefault(_frozen(values), made.to(self.device))

    def integer(self, value: int) -> Tensor:
        return torch.tensor(value, dtype=torch.int32, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def eye(self, size: int) -> Tensor:
        return torch.eye(size, dtype=torch.float32, device=self.device)

    def stack(self, arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
        return torch.stack(list(arrays), axis)

    def concat(self, arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
        return torch.cat(list(arrays), axis)

    def broadcast_to(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.broadcast_to(shape)

    def where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        # On a CPU it is much faster to see that there is nothing to choose.
        shape = getattr(x, "shape", None)  # or a number
        if condition.numel() > 1 and condition.shape == shape and finite.can_ask(x):
            all_true = bool(condition.flatten().view(torch.uint8).amin())
            if all_true:
                return x
        return torch.where(condition, x, y)

    def sort(self, x: Tensor) -> Tensor:
        return torch.sort(x).values

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.take(x, index.long())

    def sum(self, x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
        return torch.sum(x) if axis is None else torch.sum(x, axis, keepdim=keepdims)

    def sum_squares(self, x: Tensor, axis: Any, keepdims: bool = False) -> Tensor:
        axes = [a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
        axes.sort(key=x.stride, reverse=True)
        last = list(range(x.ndim - len(axes), x.ndim))
        y = x.movedim(axes, last)
        if axes != last and not y.is_contiguous():
            total = x.square()
            for a in sorted(axes):  # the first leaves long runs
                total = total.sum(a, keepdim=True)
            return total if keepdims else total.squeeze(tuple(axes))
        # Makes no array of squares.
        total = torch.linalg.vector_norm(y.flatten(last[0]), dim=-1).square()
        if not keepdims:
            return total
        return total.reshape(*total.shape, *(1 for _ in axes)).movedim(last, axes)

    def dot(self, x: Tensor, y: Tensor, axis: Any) -> Tensor:
        count = len(axis) if isinstance(axis, tuple) else 1
        lead = x.shape[: x.ndim - count]
        if math.prod(lead) == 1 and x.shape == y.shape:  # makes no array of products
            return torch.dot(x.flatten(), y.flatten()).reshape(lead)
        return torch.sum(x * y, axis)

    def mix(self, weights: Sequence[Tensor], arrays: Sequence[Tensor]) -> Tensor:
        found = weights[0] * arrays[0]
        for weight, x in zip(weights[1:], arrays[1:], strict=True):
            found = found.addcmul_(weight, x)
        return found

    def max(self, x: Tensor, axis: int) -> Tensor:
        return torch.amax(x, axis)

    def any(self, x: Tensor, axis: int) -> Tensor:
        return torch.any(x, axis)

    def all(self, x: Tensor, axis: int) -> Tensor:
        return torch.all(x, axis)

    def clip(self, x: Tensor, low: float | None, high: float | None) -> Tensor:
        return torch.clamp(x, low, high)

    def maximum(self, x: Tensor, y: Any) -> Tensor:
        return torch.maximum(x, y) if isinstance(y, Tensor) else torch.clamp(x, min=y)

    def minimum(self, x: Tensor, y: Any) -> Tensor:
        return torch.minimum(x, y) if isinstance(y, Tensor) else torch.clamp(x, max=y)

    def stop_gradient(self, x: Tensor) -> Tensor:
        return x.detach()

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        # A vector as multiply-and-sum, which neither TF32 nor autocast can reach.
        return (a.unsqueeze(-1) * b).sum(-2) if a.ndim == 1 else product(a, b)

    def bounded_rsqrt(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x)  # of an infinity 0

    def adam(
        self,
        size: Tensor,
        momentum: Tensor,
        second: Tensor,
        inside: Any,
        outside: Any,
    ) -> Tensor:
        root = (second + inside).sqrt_()
        if isinstance(outside, Tensor) or outside:
            root += outside
        return torch.div(momentum, root, out=root).mul_(size)

    def ema(self, old: Tensor, new: Tensor, decay: Any) -> Tensor:
        if self.alive is None:
            return torch.lerp(old, new.expand_as(old), self._weight(decay, 1.0))
        return old.lerp_(new, self._weight(decay, self.alive))

    def _weight(self, decay: Any, alive: Any) -> Tensor:
        if not isinstance(decay, Tensor):
            decay = self.constant(float(decay))
        return (1.0 - decay) * alive

    def unstack(self, x: Tensor, axis: int) -> Sequence[Tensor]:
        return x.unbind(axis)

    def element_mlp(
        self,
        place: Place,
        network: Any,
        scales: Sequence[Tensor] | None,
        constants: Tensor | None = None,
        lines: Mapping[int, Tensor] = {},
    ) -> ElementMLP:
        if constants is not None:  # a bias to all elements
            count, network = len(network["w0"]) - constants.shape[-1], dict(network)
            network["b0"] = network["b0"] + self.matmul(
                constants, network["w0"][count:]
            )
            network["w0"] = network["w0"][:count]
        return ElementMLP(place.rank, network, scales, lines)

    parts = staticmethod(pieces.cut)
    joined = staticmethod(pieces.joined)

    def orthogonalize(self, x: Tensor, place: Place, method: str) -> Steps:
        steps = orthogonal_steps(
            x, (0, 1), place.matrix_sides, place.matrix_cut, method, None
        )
        sums: Any = None
        while True:  # the sums are over axes of the matrix, asked for of the tensor's
            try:
                asked = next(steps) if sums is None else steps.send(sums)
            except StopIteration as done:
                return done.value
            over = [place.cut is not None and place.matrix_cut in s.axes for s in asked]
            sums = yield [
                Sum(s.value, (place.cut,) if o and place.cut is not None else ())
                for s, o in zip(asked, over, strict=True)
            ]

    def orthogonalize_each(self, x: Tensor, place: Place, method: str) -> Steps:
        matrix: Any = place.matrix
        return orthogonal_steps(x, matrix, place.shape, place.cut, method, None)

    def every(
        self,
        number: int,
        count: Tensor,
        make: Callable[[], Steps],
        shape: tuple[int, ...],
    ) -> Steps:
        if number == 1:
            return (yield from make())
        if torch.compiler.is_compiling():
            found = yield from make()
            return torch.where(count % number == 0, found, 0.0)
        # Elsewhere than on a CPU the host waits for it: once a step.
        known = self.constants.get(COUNT)
        if known is None or known[0] is not count:
            known = self.constants[COUNT] = count, int(count)
        if known[1] % number:
            return self.zeros(shape)
        return (yield from make())

    def reached(self, axis: int, averages: Sequence[Tensor]) -> Tensor | None:
        first = averages[0].select(axis, 0)
        # On a CPU it is much faster to see that there is nothing to hold.
        if first.numel() and finite.can_ask(first) and first.abs().amin() > 0.0:
            return None
        found = [torch.any(average, axis) for average in averages]
        return functools.reduce(torch.logical_or, found)


def _frozen(values: Any) -> Any:
    if isinstance(values, (list, tuple)):
        return tuple(_frozen(v) for v in values)
    return float(values)
