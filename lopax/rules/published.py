"""Where published weights keep what several rules have, under our path names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BANK = "ff_mod_stack/~/"
"""The prefix of Celo's, Celo2's and VeLO's per-element networks."""


def under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays with `prefix/` before their names."""
    return {f"{prefix}/{name}": x for name, x in arrays.items()}


def scheduler(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Of a scheduler (with or without a leading axis of one). The published `linear`
    layer and control head are dead and dropped."""
    initial = {k: arrays[f"lstm_init_state/{k}"] for k in ("hidden", "cell")}
    layers = {"mix": "linear_1", "skip": "linear_2", "lstm": "rnn/linear"}
    found = {f"initial/{k}": v.reshape(-1) for k, v in initial.items()}
    for ours, theirs in {**layers, "head": "step_size"}.items():
        for leaf in ("w", "b"):
            found[f"{ours}/{leaf}"] = arrays[f"rnn_params/{theirs}/{leaf}"]
    return found


def mlp(
    arrays: Mapping[str, Any], prefix: str, outputs: Sequence[int]
) -> dict[str, Any]:
    """An MLP, or a bank of them along a leading axis.

    The first layer may be split by groups of channels; of the last, only the given
    output units are kept.
    """
    keep = list(outputs)
    found = {name: arrays[f"{prefix}{name}"] for name in ("b0", "w1", "b1")}
    groups = sum(name.startswith(f"{prefix}w0__") for name in arrays)
    split = [arrays[f"{prefix}w0__{i}"] for i in range(groups)]
    found["w0"] = np.concatenate(split, -2) if split else arrays[f"{prefix}w0"]
    found["w2"] = arrays[f"{prefix}w2"][..., keep]
    found["b2"] = arrays[f"{prefix}b2"][..., keep]
    return found
