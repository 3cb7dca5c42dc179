"""Compiles the C++ kernels once per machine and registers them with XLA.

Nothing is compiled at import. The first use on a CPU runs the system's C++ compiler
(about five seconds) and keeps the library, see `lopax._core.native_build`. Where that
is not possible, `load` returns False and the plain rule is used.
"""

from __future__ import annotations

import functools
import platform
import warnings
from pathlib import Path

import jax

from lopax._core import native_build
from lopax._core.native_build import NativeUnavailable

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-w",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
)


def _processor() -> str:
    """Which instructions the processor has; -march=native code is not portable."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def compiler() -> list[str] | None:
    """The C++ compiler with its arguments: `CXX`, g++ or clang++; None if there is
    none, or `LOPAX_KERNELS=off`."""
    try:
        return native_build.compiler("CXX", ("g++", "clang++", "c++"))
    except NativeUnavailable:
        return None


def load(name: str, symbol: str, target: str) -> bool:
    """Makes the kernel `name`.cc available as the FFI target `target` on CPU.

    Returns whether that worked; warns once if a compiler is there but failed.
    `LOPAX_KERNELS=off` disables kernels.
    """
    return why_not(name, symbol, target) is None


@functools.cache
def why_not(name: str, symbol: str, target: str) -> str | None:
    """Why the kernel cannot be had; None if it is there. See `load`."""
    try:
        source = native_build.Source(
            name=name,
            files=(Path(__file__).with_name(f"{name}.cc"),),
            command=(
                *native_build.compiler("CXX", ("g++", "clang++", "c++")),
                *FLAGS,
                f"-I{jax.ffi.include_dir()}",
            ),
            symbols=(symbol,),
            depends=(_processor(), jax.__version__),
        )
        library = native_build.load(source)
    except NativeUnavailable as error:
        if not error.expected:
            warnings.warn(
                f"the fused CPU kernel {name!r} could not be built ({error}); using "
                "the plain rule. Set LOPAX_KERNELS=off to silence this.",
                RuntimeWarning,
                stacklevel=3,
            )
        return str(error)
    capsule = jax.ffi.pycapsule(getattr(library, symbol))
    jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return None
