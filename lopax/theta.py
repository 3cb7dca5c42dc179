"""Meta-parameters in memory and on disk: `load_theta` and `save_theta`."""

from __future__ import annotations

import os
from typing import Any

from lopax._core.errors import ConfigError, UnknownName
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Theta
from lopax._version import __version__
from lopax.architectures import ARCHITECTURES, architecture, config_of
from lopax.pretrained.files import WeightsFile, write_arrays
from lopax.pretrained.index import list_weights, read_weights


def load_theta(path: str | os.PathLike[str], name: str | None = None) -> Theta:
    """Meta-parameters from a lopax weights file, a published `theta.state`, or the
    name of bundled weights.

    **Arguments:**

    - `path`: a `.safetensors` file written by lopax, a published Flax-msgpack file,
        or a name from `lopax.list_weights()`.
    - `name`: the architecture; needed only for published files whose architecture
        cannot be told from their arrays.

    Raises `FileFormatError`, `StructureMismatch` (expected against found),
    `UnknownName`.
    """
    _, theta = load_optimizer(read_weights(path), name, {})
    return theta


def load_optimizer(
    file: WeightsFile, name: str | None, config: dict[str, Any]
) -> tuple[LearnedOptimizer, Theta]:
    """The architecture a weights file is for, with its settings, and its theta.

    `config` overrides the settings saved in the file.
    """
    saved = file.header.get("architecture")
    if name is None:
        name = saved or _recognise(file)
    elif saved is not None and saved != name:
        raise ConfigError(
            f"the weights are for architecture {saved!r}, not {name!r}: "
            f"use lopax.optimizer({saved!r}, weights=...)"
        )
    name = str(name)
    settings = {**file.header.get("config", {}), **config}
    optimizer = architecture(name, **settings)
    return optimizer, optimizer.theta_from_arrays(file.arrays)


def _recognise(file: WeightsFile) -> str:
    """The first registered architecture whose structure fits the arrays."""
    for name in ARCHITECTURES:
        try:
            architecture(name).theta_from_arrays(file.arrays)
        except (ValueError, KeyError):
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
    **header: Any,
) -> None:
    """Writes theta with everything needed to use it again.

    **Arguments:**

    - `optimizer`: the architecture theta belongs to; its settings are saved too.
    - `header`: further JSON-serialisable entries (recipe, licence, results).
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ConfigError(f"path = {os.fspath(path)!r}: must end in .safetensors")
    write_arrays(
        path,
        optimizer.theta_to_arrays(theta),
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
