"""`lopax convert IN OUT`: weights to lopax's own format, or into a submission."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lopax.cli import flags

ABOUT = """Convert a weights file: a published Flax-msgpack theta.state becomes a
.safetensors file with a header that says what it is.

With --to algoperf, TARGET is a
folder that gets an AlgoPerf submission for the self-tuning ruleset: submission.py and
the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    source: Annotated[Path, tyro.conf.Positional, flags.named("SOURCE")]
    """A weights file, or the name of bundled weights (`lopax list weights`)."""
    target: Annotated[Path, tyro.conf.Positional, flags.named("TARGET")]
    """The file, or for --to algoperf the folder, to write."""
    to: Literal["safetensors", "algoperf"] = "safetensors"
    """A weights file, or a submission folder."""
    framework: Literal["jax", "pytorch"] = "jax"
    """What an AlgoPerf submission is for."""
    name: Annotated[str | None, flags.named("NAME")] = None
    """The architecture, if it cannot be told from the arrays."""
    licence: str = ""
    """Licence of the weights, written into the header."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(ConvertFlags, argv, "convert", ABOUT)
    from lopax.pretrained import list_weights, read_weights
    from lopax.theta import load_optimizer, save_theta

    bundled = not args.source.exists() and str(args.source) in list_weights()
    file = read_weights(str(args.source) if bundled else args.source.absolute())
    if args.to == "algoperf":
        from lopax.cli.submission import write_submission

        for path in write_submission(
            file,
            args.target,
            framework=args.framework,
            name=args.name,
            licence=args.licence,
        ):
            print(path)
        return 0
    optimizer, theta = load_optimizer(file, args.name, {})
    header = {"converted_from": args.source.name}
    if args.licence:
        header["licence"] = args.licence
    save_theta(args.target, theta, optimizer, **header)
    print(f"{args.target}: weights of {optimizer.name}")
    return 0
