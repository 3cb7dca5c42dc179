"""The C core as a call from JAX: `elements_xla.cc`, and how it is registered with XLA.

Nothing is compiled at import. The first use of a network's width on a CPU runs the
system's compilers (some seconds) and keeps the libraries, see `_core.native_build`.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopax._core import native_build
from lopax._core.native_build import NativeUnavailable
from lopax.native import library, tables
from lopax.native.blocks import Blocks
from lopax.rules.element_net import ARRAYS, ElementNet

_TARGET = "lopax_element_step"
_CXX = ("CXX", ("g++", "clang++", "c++"))
_SYMBOLS = ("LopaxElementStep", "elements_register")


def compiler() -> list[str] | None:
    """The C++ compiler with its arguments: `CXX`, g++ or clang++; None if there is
    none, or `LOPAX_KERNELS=off`."""
    try:
        return native_build.compiler(*_CXX)
    except NativeUnavailable:
        return None


@functools.cache
def why_not(hidden: int) -> str | None:
    """Why networks of this width cannot be stepped by the core; None if they can, from
    then on. Warns once if a compiler is there but failed."""
    try:
        core, shim = library.load(hidden), _shim()
    except NativeUnavailable as error:
        if not error.expected:
            warnings.warn(
                f"the fused CPU kernel could not be built ({error}); using the plain "
                "rule. Set LOPAX_KERNELS=off to silence this.",
                RuntimeWarning,
                stacklevel=4,
            )
        return str(error)
    functions = (core.elements_prepare, core.elements_finish)
    addresses = [ctypes.cast(f, ctypes.c_void_p) for f in functions]
    shim.elements_register(ctypes.c_int64(hidden), *addresses)
    return None


@functools.cache
def _shim() -> Any:
    """The shim, registered with XLA. Raises `NativeUnavailable`."""
    command = native_build.compiler(*_CXX)
    folder = library.HERE
    loaded = native_build.load(
        native_build.Source(
            name="elements_xla",
            files=(folder / "elements_xla.cc", tables.HEADER),
            command=(
                *(*command, "-std=c++17", *library.OPTIONS),
                *(f"-I{jax.ffi.include_dir()}", f"-I{folder}"),
            ),
            symbols=_SYMBOLS,
            depends=(jax.__version__,),
        )
    )
    capsule = jax.ffi.pycapsule(getattr(loaded, _SYMBOLS[0]))
    jax.ffi.register_ffi_target(_TARGET, capsule, platform="cpu")
    return loaded


def call(
    net: ElementNet,
    axes: tuple[int, int] | None,
    bound: float,
    grad: Array,
    param: Array,
    state: tuple[Array, ...],
    network: dict[str, Array],
    decays: Array,
    scale: Array,
    finite: Array,
) -> tuple[Array, ...]:
    """The step of one tensor, and its next state, which takes the old one's place.

    `vmap` over any of the arrays becomes one call over a batch.

    **Arguments:**

    - `axes`: the second largest and the largest of the tensor's, None for a vector.
    - `bound`: of gradients.
    - `state`: momenta [3, *s], second [*s], row, col, full, as `accumulators` has them.
    - `network`: w0 [rows, hidden], ...
    - `decays`: [7] of the momenta, the factored moments, the second moment.
    - `scale`, `finite`: [] float32; the step is zero and the state kept if `finite` is.

    **Returns:** the step, the state, and [] float32 that is finite if the step is.
    """
    momenta, second, row, col, full = state
    vector = axes is None
    kept = (momenta, second, *((full, row) if vector else (row, col)))
    blocks = Blocks.of(grad.shape, axes)
    rule = tables.rule(net, grad.ndim, bound)[0]
    least, most = net.bounds.of(grad.shape) if net.bounds else (1.0, 1.0)
    dims = (net.hidden, network["w0"].shape[0], *blocks[:5], blocks.row_over_x, vector)
    reals = [*(float(rule[name]) for name in tables.RULE_FLOATS), least, most]
    stepped = jax.ffi.ffi_call(
        _TARGET,
        [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (param, *kept, scale)],
        vmap_method="broadcast_all",
        input_output_aliases={2: 1, 3: 2, 4: 3, 5: 4},  # the state, in place
    )
    delta, momenta, second, first, other, seen = stepped(
        *(grad, param, *kept, *(network[name] for name in ARRAYS)),
        *(decays, scale, finite),
        dims=np.asarray(dims, np.int64),
        slots=np.asarray(rule["slots"], np.int64),
        flags=np.asarray([rule[name] for name in tables.RULE_FLAGS], np.int64),
        reals=np.asarray(reals, np.float32),
    )
    if vector:
        return delta, momenta, second, other, col, first, seen
    return delta, momenta, second, first, other, full, seen
