"""Which parameters are vectors, embeddings, an output layer, convolutions, matrices.

What practitioners tell apart when they use an orthogonalising optimizer, read off the
parameters' names and shapes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopax._core.tree import path_name

ROLES = ("vectors", "embeddings", "output", "convolutions", "matrices")

_EMBEDDING = re.compile(r"(?i)embed|(^|/)(position|positions|wte|wpe)(/|$)")
_OUTPUT = re.compile(
    r"(?i)(^|/)(head|lm_head|output|readout|logits|classifier|unembed\w*)(/|$)"
)


_PROJECTION = re.compile(r"(?i)(^|/)(query|key|value|qkv|[qkv]_proj)(/|$)")
_MERGE = re.compile(r"(?i)(^|/)(out|o_proj|out_proj)(/|$)")


def roles_of(params: Any) -> Any:
    """A tree of `ROLES`, one for each tensor of `params`.

    "vectors": rank 0 and 1, and [1, 1, n] or the like. By name: "embeddings" (token
    and position), "output" (`head`, `lm_head`, `logits`, ...; where nothing is called
    so, the last matrix in the order of the numbers in the names). Rank 4 and more:
    "convolutions". The rest: "matrices", in stacks if there are three axes.
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
        if rank <= 1 or (rank > 2 and jnp.size(x) == max(jnp.shape(x))):
            return "vectors"
        if name in output:
            return "output"
        if _EMBEDDING.search(name):
            return "embeddings"
        return "convolutions" if rank >= 4 else "matrices"

    return jax.tree_util.tree_map_with_path(role, params)


class Axes(NamedTuple):
    """Which axes of a tensor are its inputs and which its outputs, as a matrix; the
    rest, if any, number the matrices of a stack."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def axes_of(name: str, rank: int) -> Axes:
    """The axes of a tensor of rank 2 or more.

    The last axis is the output, all others are inputs (a convolution's window and its
    channels). Three axes are a stack of matrices, but for attention's projections:
    query, key and value [width, heads, size] have two axes of outputs, `out`
    [heads, size, width] two of inputs.
    """
    if rank == 3 and _PROJECTION.search(name):
        return Axes((0,), (1, 2))
    if rank == 3 and not _MERGE.search(name):
        return Axes((1,), (2,))
    return Axes(tuple(range(rank - 1)), (rank - 1,))


def axes_tree(params: Any) -> Any:
    """A tree of `Axes`, one for each tensor of `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: axes_of(path_name(path), jnp.ndim(x)), params
    )


def _counted(name: str) -> list[tuple[int, str]]:
    """Sorts `layer10` after `layer9`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
