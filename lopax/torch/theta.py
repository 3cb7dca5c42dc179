"""Meta-parameters as torch tensors, from a file, bundled weights or memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from lopax._core.errors import ConfigError
from lopax._core.published import check_theta, translate
from lopax.pretrained.files import check_finite, settings_of
from lopax.pretrained.index import list_weights, read_weights
from lopax.rules import form
from lopax.rules.ops import Shapes
from lopax.torch import structure
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
        return LoadedTheta({k: _array(x) for k, x in structure.paths(theta)}, {})
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


def theta_shapes(rule: form.Rule) -> dict[str, tuple[int, ...]]:
    """Shapes of the meta-parameters by path name."""
    return dict(structure.paths(rule.init_theta(Shapes(), None)))


def to_torch(
    rule: form.Rule, arrays: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """float32 tensors on the CPU from arrays under lopax's or the published names.

    Raises `StructureMismatch` unless names and shapes fit.
    """
    arrays = translate(rule.name, dict(arrays), rule.translate_published)
    want = {k: f"[{','.join(map(str, s))}]" for k, s in theta_shapes(rule).items()}
    have = {k: f"[{','.join(map(str, v.shape))}]" for k, v in arrays.items()}
    check_theta(rule.name, want, have)
    return {
        k: torch.from_numpy(np.array(v, dtype=np.float32)) for k, v in arrays.items()
    }


def _array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x)
