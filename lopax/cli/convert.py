"""`lopax convert IN OUT`: published weights to lopax's own format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags

ABOUT = """Convert a weights file: a published Flax-msgpack theta.state becomes a
.safetensors file with a header that says what it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    source: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]
    name: str | None = None
    """The architecture, if it cannot be told from the arrays."""
    licence: str = ""
    """Licence of the weights, written into the header."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(ConvertFlags, argv, "convert", ABOUT)
    from lopax.pretrained import read_weights
    from lopax.theta import load_optimizer, save_theta

    path = args.source if args.source.suffix else args.source.absolute()
    file = read_weights(path)
    optimizer, theta = load_optimizer(file, args.name, {})
    header = {"converted_from": args.source.name}
    if args.licence:
        header["licence"] = args.licence
    save_theta(args.target, theta, optimizer, **header)
    print(f"{args.target}: weights of {optimizer.name}")
    return 0
