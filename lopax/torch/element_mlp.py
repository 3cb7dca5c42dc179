"""A small network applied to every element of a batch of tensors [B, *s].

Narrow ones sum one channel at a time into the hidden units: nothing of the size of all
channels is built, and no setting for products makes it less than float32. Wide ones are
matrix products of channels that are stacked for it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lopax.torch.product import product

NARROW = 16
"""The most hidden units of which single sums are about as fast as products."""
CHUNK = 1 << 22
"""Numbers in the first layer's inputs that are stacked at a time."""


class ElementMLP:
    """See `lopax.rules.ops.ElementMLP`. What is begun are sums in the hidden units,
    [B, h, *s] with axes of size one.

    **Arguments:**

    - `rank`: of the tensors.
    - `network`: weights [B or 1, i, o] or [i, o], biases [B or 1, o] or [o].
    - `scales`: [B] each.
    - `lines`: [B, *s] each, with axes of size one.
    """

    def __init__(
        self,
        rank: int,
        network: Mapping[str, Tensor],
        scales: Sequence[Tensor] | None,
        lines: Mapping[int, Tensor],
    ):
        self._rank = rank
        self._arrays = arrays = {k: _batched(k, x) for k, x in network.items()}
        if scales is not None:
            scale = torch.stack(list(scales), -1).unsqueeze(-1)
            arrays["w0"] = scale * arrays["w0"]
        # Of the first layer, [B or 1, o, 1...] for each channel that is not a line.
        weights = self._at(arrays["w0"]).unbind(1)
        self._others = [c for c in range(len(weights)) if c not in lines]
        self._first = [weights[c] for c in self._others]
        sums: dict[tuple[int, ...], Tensor] = {}
        for c, x in lines.items():
            part = sums.get(x.shape)
            value = x.unsqueeze(1) * weights[c]
            sums[x.shape] = value if part is None else part.add_(value)
        bias = self._at(arrays["b0"])
        if not sums:
            self.begun = [bias]
        else:
            first, *others = sums.values()
            self.begun = [first + bias, *others]

    def __call__(
        self, channels: Iterable[Tensor], begun: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        begun = begun or self.begun
        if self._arrays["b0"].shape[-1] > NARROW:
            return self._products(list(channels), functools.reduce(operator.add, begun))
        return self._sums(channels, *begun)

    def _sums(
        self, channels: Iterable[Tensor], hidden: Tensor, *others: Tensor
    ) -> list[Tensor]:
        own = False  # whether it may be written to
        for x, weight in zip(channels, self._first, strict=True):
            if own:
                hidden.addcmul_(x.unsqueeze(1), weight)
            else:
                hidden, own = torch.addcmul(hidden, x.unsqueeze(1), weight), True
                for other in others:
                    hidden += other
        layer = 1
        while f"w{layer}" in self._arrays:
            hidden = self._dense(hidden.relu_(), layer)
            layer += 1
        return list(hidden.unbind(1))

    def _dense(self, x: Tensor, layer: int) -> Tensor:
        """[B, I, *s] -> [B, O, *s]."""
        weights = self._at(self._arrays[f"w{layer}"]).unbind(1)
        out = self._at(self._arrays[f"b{layer}"])
        for i, w in enumerate(weights):
            part = x[:, i : i + 1]
            out = torch.addcmul(out, part, w) if i == 0 else out.addcmul_(part, w)
        return out

    def _at(self, small: Tensor) -> Tensor:
        """With axes of size one for those of the tensors behind."""
        return small.reshape(*small.shape, *(1,) * self._rank)

    def _products(self, channels: Sequence[Tensor], start: Tensor) -> list[Tensor]:
        shape = torch.broadcast_shapes(*(x.shape for x in channels))
        rows = [x.expand(shape).flatten(1) for x in channels]  # [B, n] each
        if start[0, 0].numel() > 1:
            start = start.expand(*start.shape[:2], *shape[1:])
        start = start.flatten(2)  # [B or 1, h, n or 1]
        first = self._arrays["w0"]
        if len(self._others) < first.shape[1]:
            first = first[:, self._others]
        size = max(1, CHUNK // len(channels))
        parts = []
        for at in range(0, max(rows[0].shape[1], 1), size):
            stacked = torch.stack([x[:, at : at + size] for x in rows], 1)
            begun = start[..., at : at + size] if start.shape[-1] > 1 else start
            hidden = product(first.mT, stacked).add_(begun)
            layer = 1
            while f"w{layer}" in self._arrays:
                weights = self._arrays[f"w{layer}"].mT
                hidden = product(weights, hidden.relu_())
                hidden += self._arrays[f"b{layer}"].unsqueeze(-1)
                layer += 1
            parts.append(hidden)
        found = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        return [x.reshape(shape) for x in found.unbind(1)]


def _batched(name: str, x: Tensor) -> Tensor:
    """A weight [B or 1, i, o] or a bias [B or 1, o]."""
    return x if x.ndim > (2 if name[0] == "w" else 1) else x.unsqueeze(0)
