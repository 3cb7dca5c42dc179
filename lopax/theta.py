"""Meta-parameters in memory and on disk: `load_theta` and `save_theta`."""

from __future__ import annotations

import os
from typing import Any

from lopax._core.errors import ConfigError, StructureMismatch, UnknownName
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Theta
from lopax._version import __version__
from lopax.architectures import ARCHITECTURES, architecture, config_of
from lopax.pretrained.files import (
    WeightsFile,
    check_finite,
    settings_of,
    write_arrays,
)
from lopax.pretrained.index import list_weights, read_weights


def load_theta(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    allow_nonfinite: bool = False,
) -> Theta:
    """Meta-parameters from a lopax weights file, a published `theta.state`, the name
    of bundled weights, or a repository on the Hugging Face Hub.

    **Arguments:**

    - `path`: a `.safetensors` file written by lopax, a published Flax-msgpack file,
        a name from `lopax.list_weights()`, or `hf://owner/name` (extra `hub`).
    - `name`: the architecture; needed only for published files whose architecture
        cannot be told from their arrays.
    - `allow_nonfinite`: also a theta with NaN or infinity, for research.

    Raises `FileFormatError`, `StructureMismatch` (expected against found),
    `UnknownName`, `NonFiniteTheta`.
    """
    _, theta = load_optimizer(
        read_weights(path), name, {}, allow_nonfinite=allow_nonfinite
    )
    return theta


def load_optimizer(
    file: WeightsFile,
    name: str | None,
    config: dict[str, Any],
    *,
    allow_nonfinite: bool = False,
) -> tuple[LearnedOptimizer, Theta]:
    """The architecture a weights file is for, with its settings, and its theta.

    `config` overrides the settings saved in the file. Raises as `load_theta`.
    """
    saved, settings = settings_of(file)
    if name is None:
        name = saved or _recognise(file)
    elif saved not in (None, name):
        raise ConfigError(
            f"the weights are for architecture {saved!r}, not {name!r}: "
            f"use lopax.optimizer({saved!r}, weights=...)"
        )
    name = str(name)
    optimizer = architecture(name, **{**settings, **config})
    if not allow_nonfinite:  # of what the file holds: theta may be traced
        check_finite(file.arrays, f"theta for {name!r}")
    return optimizer, optimizer.theta_from_arrays(file.arrays)


def _recognise(file: WeightsFile) -> str:
    """The first registered architecture whose structure fits the arrays."""
    for name in ARCHITECTURES:
        try:
            architecture(name).theta_from_arrays(file.arrays)
        except StructureMismatch:
            continue
        return name
    raise ConfigError(
        f"cannot tell the architecture of {file.header.get('file', 'this file')}; "
        f"say name=..., one of: {', '.join(ARCHITECTURES)}"
    )


def save_theta(
    path: str | os.PathLike[str],
    theta: Theta,
    optimizer: LearnedOptimizer,
    *,
    allow_nonfinite: bool = False,
    **header: Any,
) -> None:
    """Writes theta with everything needed to use it again.

    **Arguments:**

    - `optimizer`: the architecture theta belongs to; its settings are saved too.
    - `allow_nonfinite`: also a theta with NaN or infinity, for research.
    - `header`: further JSON-serialisable entries (recipe, licence, results).

    Raises `ConfigError` for another file ending or a header that is not JSON,
    `NonFiniteTheta`, `NotWritable`.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ConfigError(f"path = {os.fspath(path)!r}: must end in .safetensors")
    arrays = optimizer.theta_to_arrays(theta)
    if not allow_nonfinite:
        check_finite(arrays, f"theta for {optimizer.name!r}")
    write_arrays(
        path,
        arrays,
        {
            "architecture": optimizer.name,
            "config": config_of(optimizer),
            "lopax": __version__,
            **header,
        },
    )


def bundled_weights(name: str) -> WeightsFile:
    """The bundled weights of an architecture; raises if it has none."""
    if name not in list_weights():
        raise UnknownName(
            f"bundled weights for architecture {name!r} (pass theta= or weights=):",
            name,
            list_weights(),
        )
    return read_weights(name)
