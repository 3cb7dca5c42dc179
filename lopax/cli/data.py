"""`lopax data fetch NAME`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax._core.errors import UnknownName
from lopax.cli import flags

ABOUT = """Fetch a data set from the Hugging Face hub into LOPAX_DATA_DIR:
lopax data fetch mnist"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFlags:
    action: Annotated[str, tyro.conf.Positional]
    """"fetch"."""
    name: Annotated[str, tyro.conf.Positional]
    """See `lopax list datasets`."""
    to: Path | None = None
    """The folder; default LOPAX_DATA_DIR or the user cache."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(DataFlags, argv, "data", ABOUT)
    if args.action != "fetch":
        raise UnknownName("action", args.action, ["fetch"])
    from lopax.data import fetch

    print(fetch(args.name, data_dir=args.to))
    return 0
