"""Weights: the index of what is bundled, and files that outlive versions.

Nothing here imports JAX or torch, so that both adapters read the same files.
"""

from lopax.pretrained.files import (
    WeightsFile,
    atomic_write,
    read_arrays,
    settings_of,
    write_arrays,
)
from lopax.pretrained.index import list_weights, read_weights, weights_card

__all__ = [
    "WeightsFile",
    "atomic_write",
    "list_weights",
    "read_arrays",
    "read_weights",
    "settings_of",
    "weights_card",
    "write_arrays",
]
