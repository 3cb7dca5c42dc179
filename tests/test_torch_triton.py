"""The Triton kernels: run by Triton's interpreter on the CPU, or on a CUDA device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch_common import FUSED_CUDA, make

SHAPES = [
    (),
    (7,),
    (1, 1),
    (7, 9),
    (9, 9),
    (130, 3),
    (2, 3, 4),
    (6, 6, 3, 3),
    (3, 4, 70),
]

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import torch
from lopax.torch import backends, fused_cuda
backends._fused = lambda rule, device: fused_cuda.create(rule)
from test_torch_triton import compare
for kind in (torch.float32, torch.bfloat16):
    compare({name!r}, torch.device("cpu"), kind, steps=3)
print("fine")
"""


def run(name, backend, device, dtype, steps, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    params: list[Any] = [
        torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype))
        for s in shapes
    ]
    strided = torch.randn(6, 4, 3, 3, generator=generator).to(device)
    strided = strided.to(memory_format=torch.channels_last)
    params.append(torch.nn.Parameter(strided))
    optimizer = make(name, params, backend=backend, weight_decay=0.1, lr=0.7)
    for step in range(steps):
        for p in params:
            grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step - 1)
            p.grad = grad.to(device, p.dtype)
        if step == 1:
            params[3].grad[2, 3] = float("inf")  # this step is skipped
        optimizer.step(loss=1.0 / (1 + step))
    assert int(optimizer.info().skipped) == (steps > 1)
    return params, [optimizer.state[p] for p in params]


def compare(name, device, dtype, steps, shapes=SHAPES):
    start, _ = run(name, "plain", device, dtype, 1, shapes)
    plain = run(name, "plain", device, dtype, steps, shapes)
    fused = run(name, "fused", device, dtype, steps, shapes)
    for a, b, first in zip(plain[0], fused[0], start, strict=True):
        a, b = a.detach().float(), b.detach().float()
        # Triton's interpreter rounds to bfloat16 towards zero, a GPU to nearest.
        coarse = 1e-2 if device.type == "cuda" else 3e-2
        tolerance = 1e-5 if dtype == torch.float32 else coarse
        assert float((a - b).norm()) <= tolerance * float(a.norm()), a.shape
        if dtype == torch.float32:  # a step may be too small to move a bfloat16
            assert not torch.equal(b, first.detach())
    for a, b in zip(plain[1], fused[1], strict=True):
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-9, msg=key)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
@pytest.mark.parametrize("name", FUSED_CUDA)
def test_kernels_in_the_interpreter(name):
    """In a process of its own: Triton reads its mode when it is imported."""
    program = PROGRAM.format(path=sys.path, name=name)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device"
)
LARGE = [*SHAPES, (3000, 700), (257, 1000), (128, 128, 3, 3), (70_000,)]


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUSED_CUDA)
def test_fused_cuda_equals_plain(name, dtype):
    compare(name, torch.device("cuda"), dtype, steps=6, shapes=LARGE)


@needs_cuda
@pytest.mark.parametrize("name", FUSED_CUDA)
def test_fused_cuda_gives_the_same_bits_every_time(name):
    device = torch.device("cuda")
    first, second = (
        run(name, "fused", device, torch.float32, 6, LARGE)[0] for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_cuda
@pytest.mark.parametrize("name", FUSED_CUDA)
def test_a_step_on_cuda_does_not_synchronise(name):
    params = [torch.nn.Parameter(torch.ones(64, 64, device="cuda"))]
    optimizer = make(name, params)
    loss = torch.ones((), device="cuda")
    for step in range(4):
        params[0].grad = torch.ones_like(params[0])
        torch.cuda.set_sync_debug_mode("error" if step == 3 else "default")
        try:
            optimizer.step(loss=loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
