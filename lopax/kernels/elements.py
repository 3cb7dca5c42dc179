"""A per-element rule's step for one tensor as one call, where there is a kernel.

Celo, VeLO, Celo2, Adafac-MLP and µLO keep the same accumulators and put a small MLP on
(some of) the same 30 channels; what differs is a handful of constants (`Form`). The
kernel takes the network, the decays, the step's scale and the guard flag as operands
and is batched by XLA's FFI, so that `vmap` over particles and thetas becomes one call
over a batch. Its derivative is that of the plain rule.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax._core.config import check_choice
from lopax._core.errors import ConfigError
from lopax._core.lifting import Leaf
from lopax._core.sizes import SizeBounds
from lopax._core.tensor_rule import TensorRule, guarded
from lopax._core.types import Flag, Theta
from lopax.blocks import element_features
from lopax.blocks.accumulators import Factored, factored_dims
from lopax.blocks.element_features import VELO_GROUPS, FeatureGroup
from lopax.blocks.moments import Decays, Moments
from lopax.kernels import build

BACKENDS = ("auto", "plain", "fused")
WIDTHS = (4, 8, 32)
NUM_INPUTS = element_features.count(VELO_GROUPS)

_TARGET = "lopax_element_step"
_ARRAYS = ("w0", "b0", "w1", "b1", "w2", "b2")


def rows_of(groups: Sequence[FeatureGroup]) -> tuple[int, ...]:
    """Which of the kernel's inputs these groups' channels are, by the groups' names."""
    first, at = {}, 0
    for group in VELO_GROUPS:
        first[group.name], at = at, at + group.channels
    return tuple(first[g.name] + i for g in groups for i in range(g.channels))


ALL_ROWS = rows_of(VELO_GROUPS)


class Form(NamedTuple):
    """The static part of a rule. Its step is -direction exp(exp_mult magnitude) scale,
    times the tensor's size if there are `bounds` of it."""

    rows: tuple[int, ...] = ALL_ROWS
    """Which of the kernel's inputs the rows of w0 belong to."""
    exp_mult: float = 0.0
    second_eps: float = 1e-6
    """Added to the second moment under the root."""
    channel_eps: float = 1e-5
    """Added to a channel's mean square under the root of its normaliser."""
    vector_eps: float = 0.0
    """Added to a vector's second moment in its factored momenta."""
    bounds: SizeBounds | None = None
    """Where the step is times the tensor's size: what counts as its least and most."""
    hold_unreached: bool = True
    """Whether elements that never saw a gradient other than zero have a step of zero;
    else the rule sees to that."""


class HasBackend(Protocol):
    """A rule's settings."""

    @property
    def backend(self) -> str: ...

    @property
    def fits_kernel(self) -> bool: ...


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
    if config.backend == "fused" and not config.fits_kernel:
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': the kernel is for hidden = "
            f"{', '.join(map(str, WIDTHS))} and three decays each; use "
            "backend='plain'"
        )


def chosen(config: HasBackend, size: int) -> bool:
    """Whether a tensor of `size` elements is stepped by the kernel. Raises
    `ConfigError` where it is asked for and cannot be built."""
    if config.backend == "plain" or not config.fits_kernel or size == 0:
        return False
    if available():
        return True
    if config.backend == "fused":
        raise ConfigError(
            f"{type(config).__name__}.backend = 'fused': no kernel here "
            f"({why_not()}); use backend='auto'"
        )
    return False


class Part(NamedTuple):
    """What the step of one tensor depends on beside the tensor."""

    net: Theta  # the MLP: w0 [rows, hidden], b0, w1, b1, w2 [hidden, 1 or 2], b2
    decays: Decays
    scale: Any  # []


def step_or_keep(
    form: Form,
    plain: Callable[[Part, Array, Moments, Array], tuple[Array, Moments]],
    part: Part,
    grad: Array,
    state: Moments,
    param: Array,
    finite: Flag,
    bound: float,
) -> tuple[Array, Moments]:
    """`TensorRule.step_or_keep` for the rule `plain(part, grad, state, param)`.

    `plain` itself is used on every platform but the CPU and for derivatives.
    """
    shapes = tuple((name, part.net[name].shape) for name in _ARRAYS)
    run = _program(form, plain, shapes, bound)
    momenta, second, factored = part.decays
    rates = [jnp.asarray(d, jnp.float32) for d in (momenta, factored, second)]
    delta, momenta, second, *factored = run(
        grad,
        param,
        *(state.momenta, state.second, *state.factored),
        _flatten(part.net, form.rows),
        jnp.concatenate(rates),
        jnp.asarray(part.scale, jnp.float32),
        finite.astype(jnp.float32),
    )
    return delta, Moments(momenta, second, Factored(*factored))


@functools.lru_cache(maxsize=128)
def _program(
    form: Form,
    plain: Callable[[Part, Array, Moments, Array], tuple[Array, Moments]],
    net: tuple[tuple[str, tuple[int, ...]], ...],
    bound: float,
) -> Callable[..., Any]:
    """The step of arrays alone. Tensors of one shape share what is traced of it."""
    shapes = dict(net)

    def reference(*operands: Array) -> tuple[Array, ...]:
        grad, param, momenta, second, row, col, full, net, rates, scale, keep = operands
        decays = Decays(rates[:3], rates[6:], rates[3:6])
        part = Part(_unflatten(net, form.rows, shapes), decays, scale)
        state = Moments(momenta, second, Factored(row, col, full))

        def step(grad: Array) -> tuple[Array, Moments]:
            return plain(part, grad, state, param)

        delta, new = guarded(step, grad, state, keep != 0, bound)
        return delta, new.momenta, new.second, *new.factored

    @jax.custom_jvp
    def run(*operands: Array) -> tuple[Array, ...]:
        return jax.lax.platform_dependent(
            *operands,
            cpu=lambda *o: _call(form, shapes["b0"][0], bound, *o),
            default=reference,
        )

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> Any:
        return jax.jvp(reference, primals, tangents)

    return jax.jit(run)


class FusedRule(TensorRule[Any, Any, Moments]):
    """Template: a rule whose step is `elements`, by the kernel where that is chosen."""

    config: Any
    """Settings with `backend` and `fits_kernel`."""

    @abc.abstractmethod
    def form(self) -> Form:
        """What distinguishes the rule from the others the kernel serves."""

    @abc.abstractmethod
    def part(self, theta: Theta, context: Any, leaf: Leaf, param: Array) -> Part:
        """What one tensor's step depends on."""

    @abc.abstractmethod
    def elements(
        self, part: Part, grad: Array, state: Moments, param: Array
    ) -> tuple[Array, Moments]:
        """The rule as its publication has it: the reference the kernel is held to."""

    def step(
        self,
        theta: Theta,
        context: Any,
        index: Leaf,
        grad: Array,
        state: Moments,
        param: Array,
    ) -> tuple[Array, Moments]:
        part = self.part(theta, context, index, param)
        return self.elements(part, grad, state, param)

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
        part = self.part(theta, context, index, param)
        return step_or_keep(
            self.form(), self.elements, part, grad, state, param, finite, bound
        )


def _flatten(net: Theta, rows: tuple[int, ...]) -> Array:
    """The MLP's arrays as one vector in the kernel's order; what it lacks is zero."""
    missing = 2 - net["b2"].shape[0]
    w0 = net["w0"]
    if rows != ALL_ROWS:
        w0 = jnp.zeros((NUM_INPUTS, w0.shape[1]), w0.dtype).at[np.array(rows)].set(w0)
    full = {
        **net,
        "w0": w0,
        "w2": jnp.pad(net["w2"], ((0, 0), (0, missing))),
        "b2": jnp.pad(net["b2"], (0, missing)),
    }
    return jnp.concatenate([full[name].reshape(-1) for name in _ARRAYS])


def _unflatten(
    flat: Array, rows: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> Theta:
    hidden, outputs = shapes["w2"]
    sizes = {**shapes, "w0": (NUM_INPUTS, hidden), "w2": (hidden, 2), "b2": (2,)}
    net, at = {}, 0
    for name in _ARRAYS:
        size = math.prod(sizes[name])
        net[name] = flat[at : at + size].reshape(sizes[name])
        at += size
    return {
        **net,
        "w0": net["w0"][np.array(rows)],
        "w2": net["w2"][:, :outputs],
        "b2": net["b2"][:outputs],
    }


def _call(form: Form, hidden: int, bound: float, *operands: Array) -> tuple[Array, ...]:
    grad, param, momenta, second, row, col, full, *rest = operands
    where = layout(grad.shape)
    if where.vector:
        p_state, q_state = full, row
    else:
        p_state, q_state = (row, col) if where.row_is_p else (col, row)
    outputs = (param, momenta, second, p_state, q_state)
    least, most = form.bounds.of(grad.shape) if form.bounds else (1.0, 1.0)
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
        hidden=np.int64(hidden),
        exp_mult=np.float32(form.exp_mult),
        grad_clip=np.float32(bound),
        second_eps=np.float32(form.second_eps),
        channel_eps=np.float32(form.channel_eps),
        vector_eps=np.float32(form.vector_eps),
        by_size=form.bounds is not None,
        least=np.float32(least),
        most=np.float32(most),
        hold=bool(form.hold_unreached),
        row_is_p=bool(where.row_is_p),
        vector=bool(where.vector),
    )
    if where.vector:
        return delta, momenta, second, row, col, p_state
    row, col = (p_state, q_state) if where.row_is_p else (q_state, p_state)
    return delta, momenta, second, row, col, full
