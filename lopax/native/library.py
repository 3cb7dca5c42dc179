"""The C core as a library, compiled for one width of the network at first use.

What may be loaded, and where it is kept: `lopax._core.native_build`. JAX and torch use
the same file. Neither is imported.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from pathlib import Path
from typing import Any

from lopax._core import native_build
from lopax._core.native_build import NativeUnavailable
from lopax.native.tables import RULE, TENSOR

HERE = Path(__file__).parent
HEADERS = ("elements.h", "lanes.h", "view.h", "tables.h")
CORE = tuple(HERE / n for n in ("elements.c", *HEADERS))
SYMBOLS = tuple(f"elements_{n}" for n in ("sizes", "prepare", "begin", "finish"))
OPTIONS = (
    *("-O3", "-fPIC", "-shared", "-pthread", "-w", "-ffp-contract=fast"),
    # Not -ffast-math: the order of sums is part of the result.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
_AVX2 = ("avx2", "fma")
_AVX512 = ("avx512f", "avx512dq", "avx512bw", "avx512vl", "fma")


def compiler() -> list[str]:
    """The C compiler: `CC`, cc, gcc or clang. Raises `NativeUnavailable`."""
    return native_build.compiler("CC", ("cc", "gcc", "clang"))


@functools.cache
def instructions() -> tuple[str, ...]:
    """Options for the vector instructions this processor has. They are named one by
    one, and are part of a library's name, so that machines can share a cache folder."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    words = next((x.split() for x in lines if x.startswith("flags")), [])
    wanted = next((w for w in (_AVX512, _AVX2) if set(w) <= set(words)), ())
    return tuple(f"-m{name}" for name in wanted)


def load(hidden: int) -> Any:
    """The core for networks of this width, with its functions declared.

    Raises `NativeUnavailable` where there is no C compiler, or it fails, or
    `LOPAX_KERNELS=off`; in one process for the same reason every time.
    """
    source = native_build.Source(
        name=f"elements{hidden}",
        files=CORE,
        command=(
            *compiler(),
            *("-std=gnu11", *OPTIONS, "-fopenmp-simd", *instructions()),
            f"-DHIDDEN={hidden}",
        ),
        libraries=("-lm",),
        symbols=SYMBOLS,
    )
    loaded = native_build.load(source)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loaded.elements_sizes.argtypes, loaded.elements_sizes.restype = (
        [ctypes.c_int],
        count,
    )
    loaded.elements_prepare.argtypes = [pointer]
    loaded.elements_prepare.restype = count
    loaded.elements_begin.argtypes = [pointer, count, pointer, pointer]
    loaded.elements_begin.restype = ctypes.c_int
    loaded.elements_finish.argtypes = [
        *(pointer, count, ctypes.c_float),
        *(ctypes.c_int, pointer, pointer),
    ]
    loaded.elements_finish.restype = ctypes.c_int
    sizes = loaded.elements_sizes(0), loaded.elements_sizes(1)
    if sizes != (TENSOR.itemsize, RULE.itemsize):
        raise NativeUnavailable(
            f"the C compiler lays out structs in another way {sizes}"
        )
    return loaded
