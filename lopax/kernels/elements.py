"""The step of an element network for one tensor as one call, where a kernel covers it.

The kernel takes the network, the decays, the step's scale and the guard flag as
operands and is batched by XLA's FFI, so that `vmap` over particles and thetas becomes
one call over a batch. Its derivative is that of the plain form.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax._core.config import check_choice
from lopax._core.errors import ConfigError
from lopax._core.lifting import Leaf
from lopax._core.tensor_rule import TensorRule, guarded
from lopax._core.types import Flag, Theta
from lopax.blocks import element_net
from lopax.blocks.accumulators import Factored, factored_dims
from lopax.blocks.moments import Moments
from lopax.kernels import build
from lopax.rules import channels
from lopax.rules.channels import VELO
from lopax.rules.element_net import ARRAYS, Decays, ElementNet, Numbers

BACKENDS = ("auto", "plain", "fused")
WIDTHS = (4, 8, 32)
NUM_INPUTS = channels.count(VELO)

_TARGET = "lopax_element_step"


ALL_ROWS = channels.places(VELO)


class HasBackend(Protocol):
    """A rule's settings."""

    @property
    def backend(self) -> str: ...

    @property
    def element_net(self) -> ElementNet: ...


class FactoredLayout(NamedTuple):
    """A tensor as [A, X, B, Y, C] with X and Y its factored dimensions."""

    dims: tuple[int, int, int, int, int]
    row_is_p: bool  # the row moment varies over X (and not over Y)
    vector: bool  # rank one: no factoring


def layout(shape: tuple[int, ...]) -> FactoredLayout:
    """How the kernel sees a tensor of this shape (rank >= 1)."""
    factored = factored_dims(shape)
    if factored is None:
        return FactoredLayout((1, 1, 1, 1, math.prod(shape)), True, True)
    d1, d0 = factored
    first, second = min(d1, d0), max(d1, d0)
    dims = (
        math.prod(shape[:first]),
        shape[first],
        math.prod(shape[first + 1 : second]),
        shape[second],
        math.prod(shape[second + 1 :]),
    )
    return FactoredLayout(dims, d1 < d0, False)


def available() -> bool:
    """Whether the CPU kernel can be used here (compiles it on the first call)."""
    return why_not() is None


def why_not() -> str | None:
    """Why the CPU kernel cannot be used here; None if it can."""
    return build.why_not("elements_cpu", "LopaxElementStep", _TARGET)


def check_backend(config: HasBackend) -> None:
    """Raises `ConfigError` for a kernel that does not exist."""
    check_choice(config, "backend", BACKENDS)
    if config.backend == "fused" and (reason := not_covered(config.element_net)):
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': {reason}; use backend='plain'"
        )


def not_covered(net: ElementNet) -> str | None:
    """What of a network the kernel cannot do; None if it covers it."""
    if net.hidden not in WIDTHS:
        widths = ", ".join(map(str, WIDTHS))
        return f"the kernel is for hidden = {widths}, not {net.hidden}"
    if net.outputs > 2:
        return f"the kernel is for one or two outputs, not {net.outputs}"
    return None


def chosen(config: HasBackend, size: int) -> bool:
    """Whether a tensor of `size` elements is stepped by the kernel. Raises
    `ConfigError` where it is asked for and cannot be built."""
    if config.backend == "plain" or size == 0 or not_covered(config.element_net):
        return False
    if available():
        return True
    if config.backend == "fused":
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': no kernel here "
            f"({why_not()}); use backend='auto'"
        )
    return False


def step_or_keep(
    net: ElementNet,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
    finite: Flag,
    bound: float,
    unrolled: bool | None = None,
) -> tuple[Array, Moments]:
    """`TensorRule.step_or_keep` for `element_net.step`.

    That is what runs on every platform but the CPU, and for derivatives.
    """
    shapes = tuple((name, numbers.network[name].shape) for name in ARRAYS)
    run = _program(net, grad.ndim, shapes, bound, unrolled)
    momenta, second, factored = numbers.decays
    rates = [jnp.asarray(d, jnp.float32) for d in (momenta, factored, second)]
    delta, momenta, second, *factored = run(
        grad,
        param,
        *(state.momenta, state.second, *state.factored),
        _flatten(numbers.network, net, grad.ndim),
        jnp.concatenate(rates),
        jnp.asarray(numbers.scale, jnp.float32),
        finite.astype(jnp.float32),
    )
    return delta, Moments(momenta, second, Factored(*factored))


@functools.lru_cache(maxsize=128)
def _program(
    net: ElementNet,
    rank: int,
    arrays: tuple[tuple[str, tuple[int, ...]], ...],
    bound: float,
    unrolled: bool | None,
) -> Callable[..., Any]:
    """The step of arrays alone. Tensors of one shape share what is traced of it."""
    shapes = dict(arrays)

    def reference(*operands: Array) -> tuple[Array, ...]:
        grad, param, momenta, second, *factored = operands[:7]
        flat, rates, scale, keep = operands[7:]
        decays = Decays(rates[:3], rates[6:], rates[3:6])
        numbers = Numbers(_unflatten(flat, net, rank, shapes), decays, scale)
        state = Moments(momenta, second, Factored(*factored))

        def step(grad: Array) -> tuple[Array, Moments]:
            return element_net.step(net, numbers, grad, state, param, unrolled)

        delta, new = guarded(step, grad, state, keep != 0, bound)
        return delta, new.momenta, new.second, *new.factored

    @jax.custom_jvp
    def run(*operands: Array) -> tuple[Array, ...]:
        return jax.lax.platform_dependent(
            *operands,
            cpu=lambda *o: _call(net, bound, *o),
            default=reference,
        )

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> Any:
        return jax.jvp(reference, primals, tangents)

    return jax.jit(run)


class FusedRule(TensorRule[Any, Any, Moments]):
    """Template: a rule whose step is one element network, by the kernel where that is
    chosen."""

    config: Any
    """Settings with `backend` and `element_net`."""
    unrolled: ClassVar[bool | None] = None
    """How the plain form computes the network, see `dense_mlp.apply`."""

    @abc.abstractmethod
    def numbers(self, theta: Theta, context: Any, leaf: Leaf, param: Array) -> Numbers:
        """What one tensor's step depends on beside the tensor."""

    def step(
        self,
        theta: Theta,
        context: Any,
        index: Leaf,
        grad: Array,
        state: Moments,
        param: Array,
    ) -> tuple[Array, Moments]:
        net, numbers = (
            self.config.element_net,
            self.numbers(theta, context, index, param),
        )
        return element_net.step(net, numbers, grad, state, param, self.unrolled)

    def step_or_keep(
        self,
        theta: Theta,
        context: Any,
        index: Leaf,
        grad: Array,
        state: Moments,
        param: Array,
        finite: Flag,
        bound: float,
    ) -> tuple[Array, Moments]:
        if not chosen(self.config, grad.size):
            return super().step_or_keep(
                theta, context, index, grad, state, param, finite, bound
            )
        numbers = self.numbers(theta, context, index, param)
        net = self.config.element_net
        return step_or_keep(
            net, numbers, grad, state, param, finite, bound, self.unrolled
        )


def _places(net: ElementNet, rank: int) -> tuple[Any, Any]:
    """The kernel's inputs a tensor of this rank has, and their rows of w0."""
    inputs = channels.places(net.seen(rank))
    return np.asarray(inputs), np.asarray(net.rows(rank))


def _flatten(network: Theta, net: ElementNet, rank: int) -> Array:
    """The MLP's arrays as one vector in the kernel's order; what it lacks is zero."""
    missing = 2 - network["b2"].shape[0]
    w0 = network["w0"]
    if net.seen(rank) != VELO:
        inputs, rows = _places(net, rank)
        empty = jnp.zeros((NUM_INPUTS, w0.shape[1]), w0.dtype)
        w0 = empty.at[inputs].set(w0[rows])
    full = {
        **network,
        "w0": w0,
        "w2": jnp.pad(network["w2"], ((0, 0), (0, missing))),
        "b2": jnp.pad(network["b2"], (0, missing)),
    }
    return jnp.concatenate([full[name].reshape(-1) for name in ARRAYS])


def _unflatten(
    flat: Array, net: ElementNet, rank: int, shapes: dict[str, tuple[int, ...]]
) -> Theta:
    hidden, outputs = shapes["w2"]
    sizes = {**shapes, "w0": (NUM_INPUTS, hidden), "w2": (hidden, 2), "b2": (2,)}
    network, at = {}, 0
    for name in ARRAYS:
        size = math.prod(sizes[name])
        network[name] = flat[at : at + size].reshape(sizes[name])
        at += size
    if net.seen(rank) != VELO:
        inputs, rows = _places(net, rank)
        empty = jnp.zeros(shapes["w0"], flat.dtype)
        network["w0"] = empty.at[rows].set(network["w0"][inputs])
    return {
        **network,
        "w2": network["w2"][:, :outputs],
        "b2": network["b2"][:outputs],
    }


def _call(net: ElementNet, bound: float, *operands: Array) -> tuple[Array, ...]:
    grad, param, momenta, second, row, col, full, *rest = operands
    where = layout(grad.shape)
    if where.vector:
        p_state, q_state = full, row
    else:
        p_state, q_state = (row, col) if where.row_is_p else (col, row)
    outputs = (param, momenta, second, p_state, q_state)
    least, most = net.bounds.of(grad.shape) if net.bounds else (1.0, 1.0)
    call = jax.ffi.ffi_call(
        _TARGET,
        [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in outputs],
        vmap_method="broadcast_all",
        input_output_aliases={2: 1, 3: 2, 4: 3, 5: 4},  # the state, in place
    )
    delta, momenta, second, p_state, q_state = call(
        grad,
        *outputs,
        *rest,
        dims=np.asarray(where.dims, np.int64),
        hidden=np.int64(net.hidden),
        exp_mult=np.float32(net.exp_mult),
        grad_clip=np.float32(bound),
        second_eps=np.float32(net.epsilons.second),
        channel_eps=np.float32(net.epsilons.channel),
        vector_eps=np.float32(net.epsilons.vector),
        by_size=net.bounds is not None,
        least=np.float32(least),
        most=np.float32(most),
        hold=bool(net.hold_unreached),
        row_is_p=bool(where.row_is_p),
        vector=bool(where.vector),
    )
    if where.vector:
        return delta, momenta, second, row, col, p_state
    row, col = (p_state, q_state) if where.row_is_p else (q_state, p_state)
    return delta, momenta, second, row, col, full
