"""Settings of the whole session. Environment variables must be set before JAX starts
its backend; worker and child processes inherit them."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from shared_files import NO_TORCH

# Eight virtual CPU devices, so that sharded code is tested everywhere.
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

# A faster compiler of fusions, slower programs. Unknown flags end the process, so only
# where it is known.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# One thread per worker: on two cores, more only fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests compile much and compute little: fewer optimisations, and programs that several
# tests, workers or child processes need are compiled once.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lopax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


class WithoutTorch(pytest.Module):
    """A file of tests of the PyTorch part where torch is not installed."""

    def collect(self):
        pytest.skip(NO_TORCH, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector):
    """Files with torch in their name need it; without it they are skipped unread."""
    if "torch" in module_path.name and importlib.util.find_spec("torch") is None:
        return WithoutTorch.from_parent(parent, path=module_path)
    return None


MEMORY = 3 << 30
"""Bytes of a worker beyond which its compiled programs are given up."""


@pytest.fixture(scope="module", autouse=True)
def small_enough():
    """A worker keeps every program it compiled, over all tests more than 10 GB."""
    yield
    pages = Path("/proc/self/statm")
    if "jax" not in sys.modules or not pages.exists():
        return
    if int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MEMORY:
        sys.modules["jax"].clear_caches()
        gc.collect()
