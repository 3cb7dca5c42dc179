"""Rules whose step is an element network: by the C core, or in the plain form.

The core takes the network, the decays, the step's scale and the guard flag as operands
and is batched by XLA's FFI, so that `vmap` over particles and thetas becomes one call
over a batch. Its derivative is that of the plain form.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_choice
from lopax._core.errors import ConfigError
from lopax._core.lifting import Leaf
from lopax._core.tensor_rule import TensorRule, guarded
from lopax._core.types import Flag, Theta
from lopax.blocks import element_net
from lopax.blocks.accumulators import Factored, factored_dims
from lopax.blocks.moments import Moments
from lopax.native import xla
from lopax.native.coverage import not_covered, tensor_not_covered
from lopax.rules.element_net import ARRAYS, Decays, ElementNet, Numbers

BACKENDS = ("auto", "plain", "fused")


class HasBackend(Protocol):
    """A rule's settings."""

    @property
    def backend(self) -> str: ...

    @property
    def element_net(self) -> ElementNet: ...


def check_backend(config: HasBackend) -> None:
    """Raises `ConfigError` for a kernel that does not exist."""
    check_choice(config, "backend", BACKENDS)
    if config.backend == "fused" and (reason := not_covered(config.element_net)):
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': {reason}; use backend='plain'"
        )


def why_plain(config: HasBackend, shape: tuple[int, ...]) -> str | None:
    """Why a tensor of this shape is stepped in the plain form on a CPU; None if the
    kernel does it. Compiles the kernel on the first call.

    Raises `ConfigError` where it is asked for and cannot be built.
    """
    net = config.element_net
    if config.backend == "plain":
        return "backend = 'plain'"
    if 0 in shape:
        return "it has no elements"
    reason = not_covered(net)
    reason = reason or tensor_not_covered(net, shape, factored_dims(shape), (-2, -1))
    if reason is not None:
        return reason
    reason = xla.why_not(net.hidden)
    if reason is not None and config.backend == "fused":
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': no kernel here "
            f"({reason}); use backend='auto'"
        )
    return reason


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
    """`TensorRule.step_or_keep` for `element_net.step`, by the kernel.

    The plain form is what runs on every platform but the CPU, and for derivatives.
    """
    momenta, second, factored = numbers.decays
    rates = [jnp.asarray(d, jnp.float32) for d in (momenta, factored, second)]
    delta, momenta, second, *factored = _program(net, bound, unrolled)(
        *(grad, param, state.momenta, state.second, *state.factored),
        *(numbers.network[name] for name in ARRAYS),
        jnp.concatenate(rates),
        jnp.asarray(numbers.scale, jnp.float32),
        finite.astype(jnp.float32),
    )
    return delta, Moments(momenta, second, Factored(*factored))


@functools.lru_cache(maxsize=128)
def _program(
    net: ElementNet, bound: float, unrolled: bool | None
) -> Callable[..., tuple[Array, ...]]:
    """The step of arrays alone. Tensors of one shape share what is traced of it."""

    def reference(*operands: Array) -> tuple[Array, ...]:
        grad, param, momenta, second, *factored = operands[:7]
        network = dict(zip(ARRAYS, operands[7:13], strict=True))
        rates, scale, keep = operands[13:]
        numbers = Numbers(network, Decays(rates[:3], rates[6:], rates[3:6]), scale)
        state = Moments(momenta, second, Factored(*factored))

        def step(grad: Array) -> tuple[Array, Moments]:
            return element_net.step(net, numbers, grad, state, param, unrolled)

        delta, new = guarded(step, grad, state, keep != 0, bound)
        return delta, new.momenta, new.second, *new.factored

    def kernel(*operands: Array) -> tuple[Array, ...]:
        grad, param, state = operands[0], operands[1], operands[2:7]
        network = dict(zip(ARRAYS, operands[7:13], strict=True))
        axes = factored_dims(grad.shape)
        rest = operands[13:]
        return xla.call(net, axes, bound, grad, param, state, network, *rest)

    @jax.custom_jvp
    def run(*operands: Array) -> tuple[Array, ...]:
        return jax.lax.platform_dependent(*operands, cpu=kernel, default=reference)

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> Any:
        return jax.jvp(reference, primals, tangents)

    return jax.jit(run)


class ElementRule(TensorRule[Any, Any, Moments]):
    """Template: a rule whose step is one element network."""

    config: Any
    """Settings with `backend` and `element_net`."""

    @property
    def unrolled(self) -> bool | None:
        """How the plain form computes the network, see `dense_mlp.apply`."""
        return None

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
        net = self.config.element_net
        numbers = self.numbers(theta, context, index, param)
        return element_net.step(net, numbers, grad, state, param, self.unrolled)

    def by_kernel(self, leaf: Leaf) -> bool:
        return why_plain(self.config, leaf.shape) is None

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
        if not self.by_kernel(index):
            return super().step_or_keep(
                theta, context, index, grad, state, param, finite, bound
            )
        net = self.config.element_net
        numbers = self.numbers(theta, context, index, param)
        return step_or_keep(
            net, numbers, grad, state, param, finite, bound, self.unrolled
        )
