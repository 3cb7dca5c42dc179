"""Matrix products whatever surrounds them."""

from __future__ import annotations

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in float32 also under autocast. It follows
    `torch.set_float32_matmul_precision` (full float32 unless the program lowers it)."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
