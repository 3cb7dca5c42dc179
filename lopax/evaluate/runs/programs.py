"""Compiled programs, each compiled once.

Other weights of a rule, or a task that is made anew, lower to the same text; compiling
is most of what a short run costs.
"""

from __future__ import annotations

import collections
import hashlib

import jax
import jax.numpy as jnp

KEPT = 16

_recent: collections.OrderedDict[str, jax.stages.Compiled] = collections.OrderedDict()


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles, unless the same text is among the last `KEPT` programs.

    A program that calls back into Python, or whose constants JAX passes as hidden
    arguments (`jax_use_simplified_jaxpr_constants`), is always compiled: its text does
    not say which function is called, or which numbers are meant.
    """
    text = lowered.as_text()
    if "callback" in text or "jax.const" in text:
        return lowered.compile()
    place = jnp.zeros(()).device  # of the default device, which the text leaves open
    key = hashlib.sha256(f"{place}\n{text}".encode()).hexdigest()
    if key not in _recent:
        _recent[key] = lowered.compile()
        while len(_recent) > KEPT:
            _recent.popitem(last=False)
    _recent.move_to_end(key)
    return _recent[key]


def clear() -> None:
    """Forgets all programs."""
    _recent.clear()


def count() -> int:
    """How many programs are kept."""
    return len(_recent)
