"""Compiles the C++ kernels once per machine and registers them with XLA.

Nothing is compiled at import. The first use on a CPU runs the system's C++ compiler
(about five seconds) and keeps the library in the user's cache folder under a name that
covers source, flags, compiler, processor and JAX version. Where that is not possible,
`load` returns False and the plain rule is used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path

import jax

from lopax.pretrained.files import atomic_write

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


def cache_dir() -> Path:
    """`LOPAX_CACHE_DIR`, or `lopax` in the user's cache folder."""
    chosen = os.environ.get("LOPAX_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lopax"


def _processor() -> str:
    """Which instructions the processor has; -march=native code is not portable."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def compiler() -> str | None:
    """Path of the C++ compiler: `CXX`, g++ or clang++; None if there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


@functools.cache
def load(name: str, symbol: str, target: str) -> bool:
    """Makes the kernel `name`.cc available as the FFI target `target` on CPU.

    Returns whether that worked; warns once if a compiler is there but failed.
    `LOPAX_KERNELS=off` disables kernels.
    """
    if os.environ.get("LOPAX_KERNELS", "").lower() in ("off", "0"):
        return False
    source = Path(__file__).with_name(f"{name}.cc")
    cxx = compiler()
    if cxx is None:
        return False
    text = source.read_text()
    parts = (text, *FLAGS, cxx, _processor(), jax.__version__)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    library = cache_dir() / "kernels" / f"{name}-{digest}.so"
    try:
        if not library.exists():
            with atomic_write(library) as temporary:
                _compile(cxx, source, temporary)
        handle = ctypes.CDLL(str(library))
        capsule = jax.ffi.pycapsule(getattr(handle, symbol))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"the fused CPU kernel {name!r} could not be built ({error}); using the "
            "plain rule. Set LOPAX_KERNELS=off to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _compile(cxx: str, source: Path, target: Path) -> None:
    command = [
        cxx,
        *FLAGS,
        f"-I{jax.ffi.include_dir()}",
        str(source),
        "-o",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        first = done.stderr.strip().splitlines()[:1]
        raise OSError(f"{Path(cxx).name} failed: {first[0] if first else 'no message'}")
