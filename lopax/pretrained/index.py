"""The weights that come with the package, and finding weights by name or path."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

from lopax._core.errors import FileFormatError, UnknownName
from lopax.pretrained import hub
from lopax.pretrained.files import WeightsFile, read_arrays

_BUNDLED = Path(__file__).parent / "weights"


def list_weights(pattern: str = "*") -> list[str]:
    """Names of the bundled weights; the default of an architecture has its name."""
    found = sorted(p.stem for p in _BUNDLED.glob("*.safetensors"))
    return fnmatch.filter(found, pattern)


def read_weights(name_or_path: str | os.PathLike[str]) -> WeightsFile:
    """Reads bundled weights by name, or any weights file by path.

    A text that begins with `hf://` is an address on the Hugging Face Hub (see
    `lopax.pretrained.hub`), one with a path separator or a file ending a path, anything
    else a name. A folder stands for the `model.safetensors` in it.

    Raises `UnknownName` (near matches), `FileFormatError`, `MissingExtra`.
    """
    text = os.fspath(name_or_path)
    if text.startswith(hub.SCHEME):
        return read_arrays(hub.download(text))
    is_path = os.sep in text or "/" in text or Path(text).suffix != ""
    if is_path:
        path = Path(text).expanduser()
        if os.path.isfile(path / hub.WEIGHTS):  # never an error, as pathlib's may be
            return read_arrays(path / hub.WEIGHTS)
        if os.path.isdir(path):
            raise FileFormatError(f"{path} is a folder; name the weights file in it")
        return read_arrays(path)
    bundled = _BUNDLED / f"{text}.safetensors"
    if not os.path.isfile(bundled):
        raise UnknownName("weights", text, list_weights())
    return read_arrays(bundled)


def weights_card(name: str) -> str:
    """The model card (Markdown) of bundled weights.

    Raises `UnknownName` if there are no such weights.
    """
    card = _BUNDLED / f"{name}.md"
    if not card.is_file():
        raise UnknownName("weights", name, list_weights())
    return card.read_text(encoding="utf-8")
