"""Meta-parameters as torch tensors, from a file, bundled weights or memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from lopax._core.errors import ConfigError, StructureMismatch
from lopax.pretrained.files import check_finite, settings_of
from lopax.pretrained.index import list_weights, read_weights
from lopax.torch.errors import WeightsNotGiven


class LoadedTheta(NamedTuple):
    arrays: dict[str, np.ndarray]  # path name -> float32 array
    config: dict[str, Any]  # settings saved with them


def load(
    name: str,
    theta: Mapping[str, Any] | None,
    weights: str | os.PathLike[str] | None,
) -> LoadedTheta:
    """The meta-parameters for architecture `name`.

    **Arguments:**

    - `theta`: nested or flat mapping of arrays (numpy, torch or JAX), or
    - `weights`: a weights file, or the name of bundled weights. Default: the bundled
        weights of the architecture.

    Raises `ConfigError` (both given, or weights of another architecture),
    `UnknownName` (`WeightsNotGiven` where none are bundled), `FileFormatError`.
    """
    if theta is not None:
        if weights is not None:
            raise ConfigError("give theta= or weights=, not both")
        return LoadedTheta(dict(_flatten(theta)), {})
    if weights is None and name not in list_weights():
        raise WeightsNotGiven(name, list_weights())
    file = read_weights(name if weights is None else weights)
    saved, settings = settings_of(file)
    if saved not in (None, name):
        raise ConfigError(
            f"the weights are for architecture {saved!r}, not {name!r}: "
            f"use lopax.torch.optimizer({saved!r}, params, weights=...)"
        )
    check_finite(file.arrays, f"weights {weights or name}")
    return LoadedTheta(dict(file.arrays), dict(settings))


def to_torch(
    name: str,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, torch.Tensor]:
    """float32 tensors on the CPU; raises `StructureMismatch` unless shapes fit."""
    want = {k: f"[{','.join(map(str, s))}]" for k, s in shapes.items()}
    have = {k: f"[{','.join(map(str, v.shape))}]" for k, v in arrays.items()}
    if want != have:
        raise StructureMismatch.between(
            f"theta for architecture {name!r}",
            want,
            have,
            "Was it trained with another architecture or other sizes?",
        )
    return {
        k: torch.from_numpy(np.array(v, dtype=np.float32)) for k, v in arrays.items()
    }


def _flatten(
    tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu()
            yield f"{prefix}{key}", np.asarray(value)
