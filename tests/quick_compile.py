"""Compilation for tests that run a large program a few times on tiny tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

_OPTIONS = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def quick_compile(lowered: Any) -> Any:
    """`lowered.compile()` with few optimisations. A compiler that does not know an
    option gets none."""
    try:
        return lowered.compile(compiler_options=_OPTIONS)
    except Exception as error:
        if "option" not in str(error):
            raise
        return lowered.compile()


def quick_jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for arguments of one shape only, compiled four times faster and
    running slower."""
    compiled: Any = None

    def call(*args: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = quick_compile(jax.jit(fn).lower(*args))
        return compiled(*args)

    return call


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Imported by a test module, it compiles everything there with few optimisations,
    which halves the time of tests that run each program once."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
