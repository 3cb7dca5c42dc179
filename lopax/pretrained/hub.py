"""Weights on the Hugging Face Hub, and folders laid out as its repositories are.

A repository of weights holds `model.safetensors` (a lopax weights file) and a README.md
that is their card. `hf://owner/name` names that file, `hf://owner/name@revision` at a
branch, tag or commit, and `hf://owner/name/folder/file` any other file in it, such as a
published `theta.state`. Files are cached by `huggingface_hub` as all others are
(`HF_HOME`), and found there without a network (`HF_HUB_OFFLINE=1`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lopax._core.atomic import atomic_write
from lopax._core.errors import ConfigError, FileFormatError, MissingExtra

SCHEME = "hf://"
WEIGHTS = "model.safetensors"
CARD = "README.md"
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[^@]+))?"
)


class Address(NamedTuple):
    """What an `hf://` text names."""

    repo: str
    revision: str | None
    file: str


def parse(text: str) -> Address:
    """Reads `hf://owner/name[@revision][/file]`; raises `ConfigError`."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{text!r} is not an address on the Hub: write hf://owner/name, "
            "hf://owner/name@revision, or hf://owner/name/file.safetensors"
        )
    return Address(found["repo"], found["revision"], found["file"] or WEIGHTS)


def download(text: str) -> Path:
    """The local copy of what an `hf://` address names, fetched if it is not here.

    Raises `ConfigError` for a bad address, `MissingExtra` without `huggingface_hub`,
    `FileFormatError` if there is no such repository, revision or file, or no network.
    """
    address = parse(text)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub", f"weights={text!r}") from None
    try:
        found = hf_hub_download(
            address.repo, address.file, revision=address.revision, library_name="lopax"
        )
    except (OSError, ValueError) as error:  # huggingface_hub's derive from them
        first = str(error).strip().split("\n")[0]
        raise FileFormatError(
            f"cannot get {text!r} ({type(error).__name__}: {first}). Is the name "
            "right, and is there a network? Private repositories need `hf auth login`; "
            "a downloaded folder can be given as a path."
        ) from error
    return Path(found)


def write_card(
    folder: str | os.PathLike[str], header: Mapping[str, Any], about: str | None
) -> Path:
    """Writes the README.md of a folder with weights; `hf upload owner/name FOLDER` does
    the rest.

    **Arguments:**

    - `header`: that of the weights file; `architecture`, `config` and `licence` go into
        the card, the first and the last also into its head, where the Hub looks.
    - `about`: what is known about the weights, in Markdown; None: what the header says.
    """
    path = Path(folder) / CARD
    with atomic_write(path) as temporary:
        text = front_matter(header) + card_of(header, about)
        temporary.write_text(text, encoding="utf-8")
    return path


def front_matter(header: Mapping[str, Any]) -> str:
    """The head of a card (YAML; JSON strings are YAML) by which the Hub files it."""
    lines = ["library_name: lopax"]
    if header.get("licence"):
        lines.append(f"license: {json.dumps(str(header['licence']).lower())}")
    tags = ["learned-optimizer", "optimizer", "jax", "pytorch", header["architecture"]]
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    return "\n".join(["---", *lines, "---", "", ""])


def card_of(header: Mapping[str, Any], about: str | None) -> str:
    """The text of a card: about the weights, and how to use them."""
    name = header["architecture"]
    needs = json.dumps(header.get("config", {}), indent=2, sort_keys=True)
    text = about or (
        f"# {name}\n\nMeta-parameters of the learned optimizer `{name}`, for lopax.\n\n"
        f"Settings saved with them:\n\n```json\n{needs}\n```\n"
    )
    return (
        text.rstrip("\n")
        + f"""

## Use

```python
import lopax

opt = lopax.optimizer("{name}", weights="hf://OWNER/NAME", num_steps=2_000)
```

`OWNER/NAME` is this repository. In PyTorch: `lopax.torch.optimizer("{name}", ...)`.
"""
    )
