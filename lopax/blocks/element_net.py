"""The plain form of an element network: what `lopax.rules.element_net` describes.

The rule as its publication has it, and the reference kernels are held to. Every channel
is an array that broadcasts to the tensor's shape; row and column statistics keep size-1
axes, so that they cost their own size and not the tensor's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax.blocks import accumulators, moments
from lopax.blocks.accumulators import FactoredViews
from lopax.blocks.moments import Moments
from lopax.blocks.normalize import matrix_rms_scale, rms_scale, tensor_size
from lopax.nets import dense_mlp
from lopax.rules.channels import CLIP, GROUPS, LINE_EPS
from lopax.rules.element_net import ElementNet, Epsilons, Numbers


class ElementView:
    """One tensor after its accumulators were updated: the terms of its channels, as
    `lopax.rules.channels.TERMS` names them, each computed if it is asked for."""

    def __init__(self, grad: Array, state: Moments, param: Array, epsilons: Epsilons):
        self.grad, self.param = grad, param  # [*s], the gradient clipped
        self.momenta, self.second = state.momenta, state.second  # [3, *s], [*s]
        self._state, self._epsilons = state, epsilons

    @functools.cached_property
    def clipped_grad(self) -> Array:
        return jnp.clip(self.grad, -CLIP, CLIP)

    @functools.cached_property
    def rsqrt(self) -> Array:
        return jax.lax.rsqrt(self.second + self._epsilons.second)

    @functools.cached_property
    def _factored(self) -> FactoredViews:
        return accumulators.factored_views(self._state.factored, self.grad.shape)

    @property
    def row(self) -> Array:
        return self._factored.row

    @property
    def col(self) -> Array:
        return self._factored.col

    @property
    def row_rsqrt(self) -> Array:
        return jax.lax.rsqrt(self.row + LINE_EPS)

    @property
    def col_rsqrt(self) -> Array:
        return jax.lax.rsqrt(self.col + LINE_EPS)

    @functools.cached_property
    def factor(self) -> Array:
        return self._factored.row_scale * self._factored.col_scale

    @functools.cached_property
    def momenta_factor(self) -> Array:
        # A vector has no factors. The accumulators' own 1e-30 keeps it finite.
        if self.grad.ndim == 1:
            return jax.lax.rsqrt(self.row + self._epsilons.vector)
        return self.factor


def channels(names: Sequence[str], view: ElementView) -> list[Array]:
    """All channels of the groups, in order."""
    found: list[Array] = []
    for name in names:
        group = GROUPS[name]
        values = group.of(view)
        found += list(values) if group.width > 1 else [values]
    return found


def scale(net: ElementNet, channel: Array) -> Array:
    """The factor that brings a channel to unit root mean square."""
    if net.per_matrix:
        return matrix_rms_scale(channel, net.epsilons.channel)
    return rms_scale(channel, net.epsilons.channel)


def outputs(
    net: ElementNet,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
    unrolled: bool | None = None,
) -> tuple[list[Array], ElementView, Moments]:
    """The network's outputs for every element, what it saw, and the next state.

    **Arguments:**

    - `grad`, `param`: [*s] of rank >= 1.
    - `state`: the accumulators before this gradient.
    - `unrolled`: how the network is computed, see `dense_mlp.apply`.
    """
    state = moments.update(state, grad, numbers.decays)
    view = ElementView(grad, state, param, net.epsilons)
    seen = channels(net.seen(grad.ndim), view)
    network, rows = dict(numbers.network), net.rows(grad.ndim)
    if len(rows) < net.num_channels:
        network["w0"] = network["w0"][np.asarray(rows)]
    scales = [scale(net, x) for x in seen]
    return dense_mlp.apply(network, seen, scales, unrolled), view, state


def step(
    net: ElementNet,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
    unrolled: bool | None = None,
) -> tuple[Array, Moments]:
    """What to add to the tensor [*s], and its next state; arguments as `outputs`."""
    found, _, state = outputs(net, numbers, grad, state, param, unrolled)
    size = numbers.scale
    if net.bounds is not None:
        size = size * tensor_size(param, net.bounds)
    delta = -jnp.broadcast_to(found[0], grad.shape)
    if net.exp_mult:
        delta = delta * jnp.exp(net.exp_mult * found[1])
    delta = delta * size
    if net.hold_unreached:
        delta = jnp.where(moments.reached(state), delta, 0.0)
    return delta, state
