"""What a parameter is for, as far as its name and shape tell.

Rules that step hidden matrices in another way than embeddings and output layers need to
know which is which, and names differ from program to program. A tensor that is not
recognised is taken for a hidden one.
"""

from __future__ import annotations

import functools
import re

KINDS = ("embedding", "vocabulary", "output", "input")
"""Embeddings; layers and tables over a vocabulary; other output layers; input layers.
The first that applies counts."""

VOCABULARY = 4096
"""From this many classes on, an output layer is one over a vocabulary."""
_BY_SIZE = 8192, 16, 64
"""Without a telling name: entries, at least so many times as many as features, and
features. Hidden layers are not so long, adapters of low rank are narrower."""

# Components of a path under which a module keeps its arrays.
_LEAVES = re.compile(r"(weight|kernel|w|value|table|param|scale|bias|b)$", re.I)
_EMBEDDING = re.compile(
    r"(wte|wpe|shared|tok|tokens?|vocab|vocabulary|embs?|.*[._-]embs?|embs?[._-].*)$",
    re.I,
)
_LM_HEAD = re.compile(r"(lm|vocab|mlm|token)[._-]?(head|logits|projection)$", re.I)
_OUTPUT = re.compile(
    r"(head|output|logits?|classifier|readout|score"
    r"|(output|classification|cls|pred|prediction)[._-]?(head|layer)|.*[._-]logits)$",
    re.I,
)
_INPUT = re.compile(r"(input|input[._-]?(layer|proj|projection)|stem)$", re.I)
# What a part of the network puts out is not the network's output.
_INSIDE = re.compile(r"attn|attention|mlp|ffn|block|expert", re.I)
_ENCODER = re.compile(r"encoder", re.I)
_ADAPTER = re.compile(r"(^|[/_])lora[_/]", re.I)


@functools.lru_cache(maxsize=1 << 14)
def kind_of(name: str | None, shape: tuple[int, ...]) -> str | None:
    """One of `KINDS`, or None for hidden, unknown, and fewer than two axes larger than
    one.

    **Arguments:**

    - `name`: the path `block/0/weight`; None if it is not known.
    - `shape`: of one tensor, () for a scalar.
    """
    sizes = [n for n in shape if n != 1]
    if len(sizes) < 2:
        return None
    by_name = None if name is None else _by_name(name)
    large = max(sizes) >= VOCABULARY
    if by_name == "output" and large and len(sizes) == 2:
        return "vocabulary"
    if by_name is None and _is_table(name, sizes):
        return "vocabulary"
    return by_name


def _by_name(name: str) -> str | None:
    if re.search("embed", name, re.I):
        return "embedding"
    parts = [p for p in name.split("/") if p]
    while len(parts) > 1 and _LEAVES.match(parts[-1]):
        parts.pop()
    owner = parts[-1] if parts else ""
    if _LM_HEAD.match(owner):
        return "vocabulary"
    if any(_INSIDE.search(p) for p in parts[:-1]):
        return None
    if _EMBEDDING.match(owner):
        return "embedding"
    if _OUTPUT.match(owner) and not any(_ENCODER.search(p) for p in parts[:-1]):
        return "output"
    return "input" if _INPUT.match(owner) else None


def _is_table(name: str | None, sizes: list[int]) -> bool:
    """Whether the sizes can only be those of a vocabulary and its features."""
    entries, ratio, features = _BY_SIZE
    longest, shortest = max(sizes), min(sizes)
    return (
        len(sizes) == 2
        and longest >= max(entries, ratio * shortest)
        and shortest >= features
        and not (name and _ADAPTER.search(name))
    )
