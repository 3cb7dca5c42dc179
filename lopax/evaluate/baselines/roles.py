"""Which parameters are vectors, embeddings, an output layer, convolutions, matrices.

What practitioners tell apart when they use an orthogonalising optimizer, read off the
parameters' names and shapes.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.tree import path_name

ROLES = ("vectors", "embeddings", "output", "convolutions", "matrices")

_EMBEDDING = re.compile(r"(?i)embed|(^|/)(position|positions|wte|wpe)(/|$)")
_OUTPUT = re.compile(
    r"(?i)(^|/)(head|lm_head|output|readout|logits|classifier|unembed\w*)(/|$)"
)


def roles_of(params: Any) -> Any:
    """A tree of `ROLES`, one for each tensor of `params`.

    Rank 0 and 1: "vectors". By name: "embeddings" (token and position), "output"
    (`head`, `lm_head`, `logits`, ...; where nothing is called so, the last matrix in
    the order of the numbers in the names). Rank 4 and more: "convolutions". The rest:
    "matrices", in stacks if there are three axes.
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path_name(path): jnp.shape(x) for path, x in named}
    matrices = [
        n
        for n, s in shapes.items()
        if len(s) == 2 and not (_EMBEDDING.search(n) and not _OUTPUT.search(n))
    ]
    output = {n for n in matrices if _OUTPUT.search(n)}
    if not output and matrices:
        output = {max(matrices, key=_counted)}

    def role(path: Any, x: Any) -> str:
        name, rank = path_name(path), jnp.ndim(x)
        if rank <= 1:
            return "vectors"
        if name in output:
            return "output"
        if _EMBEDDING.search(name):
            return "embeddings"
        return "convolutions" if rank >= 4 else "matrices"

    return jax.tree_util.tree_map_with_path(role, params)


def flat_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(in, out) of a tensor of two or more axes as a matrix: a convolution's window
    and its inputs together against its outputs; of a stack, one matrix."""
    if len(shape) == 3:
        return shape[1], shape[2]
    return math.prod(shape[:-1]), shape[-1]


def _counted(name: str) -> list[tuple[int, str]]:
    """Sorts `layer10` after `layer9`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
