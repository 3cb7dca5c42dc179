"""What names and shapes of parameters say about a run that is about to go wrong.

Nothing here decides how a tensor is stepped: what looks like something is said once,
and a user who knows better goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

ATTENTION_FACTORS = {"celo_adam": 0.3}
"""Bundled weights whose steps are too large for transformers, and the factor to begin
with there."""

_ATTENTION = re.compile(
    r"(^|[/_.])(.*attn.*|.*attention.*|qkv|[qkv]_?proj|query|in_proj_weight)([/_.]|$)",
    re.I,
)
_PER_OUTPUT = re.compile(r"(bias|b|offset|beta)$", re.I)


def attention_in(names: Iterable[str]) -> str | None:
    """The first of the path names that is a part of attention."""
    return next((name for name in names if _ATTENTION.search(name)), None)


def of_attention(rule: str, name: str, factor: str) -> str:
    """What is said of it; `factor`: what the factor on steps is called."""
    suggested = ATTENTION_FACTORS[rule]
    return (
        f"{name!r} looks like attention. The bundled schedule of {rule!r} makes steps "
        "about three times too large for transformers, which then stay at the loss of "
        f"letter pairs: begin with {factor}={suggested}, or use 'learned_muon'."
    )


def stack_in(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The path of the first module whose arrays look like those of several layers in
    one: a bias with two axes beside a kernel with three or more, and the same number
    of layers and outputs. () for a scalar's shape."""
    beside: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        beside.setdefault(name.rpartition("/")[0], []).append(shape)
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition("/")
        if len(shape) != 2 or shape[0] < 2 or not _PER_OUTPUT.match(leaf):
            continue
        layers, outputs = shape
        for other in beside[module]:
            fits = len(other) > 2 and other[0] == layers
            if fits and outputs in other[1:2] + other[-1:]:
                return module
    return None


def of_stack(rule: str, module: str) -> str:
    """What is said of it."""
    start = f"^{re.escape(module)}/" if module else "."
    where = f"under {module!r}" if module else "of these parameters"
    return (
        f"the arrays {where} look like layers stacked along the first axis (a scan, "
        f"experts). {rule!r} takes each array for one tensor, so that layers share "
        "their statistics and biases are trained as a matrix. Say so: "
        f"routes=[lopax.Route(name={start!r}, stack_axes=(0,))]."
    )
