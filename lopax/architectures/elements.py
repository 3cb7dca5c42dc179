"""JAX's element networks: by the C core where it covers them, or in the plain form.

The core takes the network, the decays, the step's scale and the guard flag as operands
and is batched by XLA's FFI, so that `vmap` over particles and thetas becomes one call
over a batch. Its derivative is that of the plain form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend import backend as backends
from jaxtyping import Array

from lopax._core.errors import ConfigError
from lopax._core.lifting import guarded
from lopax._core.types import Flag
from lopax.architectures.jax_ops import JaxOps
from lopax.native import xla
from lopax.native.coverage import not_covered, tensor_not_covered
from lopax.rules import element_plain
from lopax.rules.element_net import ARRAYS, Decays, ElementNet, Numbers
from lopax.rules.form import Place, complete
from lopax.rules.moments import Factored, Moments
from lopax.rules.ops import Ops


def check_backend(config: Any, net: ElementNet) -> None:
    """Raises `ConfigError` for a kernel that does not exist."""
    if config.backend == "fused" and (reason := not_covered(net)):
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': {reason}; use backend='plain'"
        )


def why_plain(config: Any, net: ElementNet, place: Place) -> str | None:
    """Why a tensor is stepped in the plain form on a CPU; None if the kernel does it.
    Compiles the kernel on the first call.

    Raises `ConfigError` where it is asked for and cannot be built.
    """
    if config.backend == "plain":
        return "backend = 'plain'"
    if 0 in place.shape:
        return "it has no elements"
    reason = not_covered(net) or tensor_not_covered(net, place)
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
    place: Place,
    numbers: Numbers,
    grad: Array,
    state: Moments,
    param: Array,
    finite: Flag,
    bound: float,
    unrolled: bool | None = None,
) -> tuple[Array, Moments, Array]:
    """`TensorRule.step_or_keep` for `element_plain.step`, by the kernel.

    The plain form is what runs on every platform but the CPU, and for derivatives.
    Where JAX has no other platform, the step is the kernel's alone: to lower a program
    there for another one (`jax.export`), ask for backend="plain".
    """
    momenta, second, factored = numbers.decays
    rates = [jnp.asarray(d, jnp.float32) for d in (momenta, factored, second)]
    delta, momenta, second, *lines, seen = _program(net, place, bound, unrolled)(
        *(grad, param, state.momenta, state.second, *state.factored),
        *(numbers.network[name] for name in ARRAYS),
        jnp.concatenate(rates),
        jnp.asarray(numbers.scale, jnp.float32),
        finite.astype(jnp.float32),
    )
    return delta, Moments(momenta, second, Factored(*lines)), seen


@functools.lru_cache(maxsize=128)
def _program(
    net: ElementNet, place: Place, bound: float, unrolled: bool | None
) -> Callable[..., tuple[Array, ...]]:
    """The step of arrays alone. Tensors of one shape share what is traced of it."""
    xp = cast(Ops, JaxOps(unrolled))

    def reference(*operands: Array) -> tuple[Array, ...]:
        grad, param, momenta, second, *lines = operands[:7]
        network = dict(zip(ARRAYS, operands[7:13], strict=True))
        rates, scale, keep = operands[13:]
        numbers = Numbers(network, Decays(rates[:3], rates[6:], rates[3:6]), scale)
        state = Moments(momenta, second, Factored(*lines))

        def step(grad: Array) -> tuple[Array, Moments]:
            return complete(
                element_plain.step(xp, place, net, numbers, grad, state, param)
            )

        # No program apart: JAX 0.10 cannot turn its derivative round in here.
        delta, new = guarded(step, grad, state, keep != 0, bound)
        return delta, new.momenta, new.second, *new.factored, jnp.sum(delta * 0.0)

    def kernel(*operands: Array) -> tuple[Array, ...]:
        grad, param, state = operands[0], operands[1], operands[2:7]
        network = dict(zip(ARRAYS, operands[7:13], strict=True))
        rest = operands[13:]
        return xla.call(net, place.factored, bound, grad, param, state, network, *rest)

    @jax.custom_jvp
    def run(*operands: Array) -> tuple[Array, ...]:
        if set(backends.backends()) == {"cpu"}:  # tracing the other takes longer than
            return kernel(*operands)  # all else; it would be for another machine
        return jax.lax.platform_dependent(*operands, cpu=kernel, default=reference)

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> Any:
        return jax.jvp(reference, primals, tangents)

    return jax.jit(run)
