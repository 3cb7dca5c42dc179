"""`lopax convert IN OUT`: weights to lopax's own format, or into a submission."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lopax._core.atomic import make_folder
from lopax.cli import flags

ABOUT = """Convert a weights file: a published Flax-msgpack theta.state becomes a
.safetensors file with a header that says what it is.

With --to hub-folder, TARGET is a folder to be uploaded to the Hugging Face Hub as it is
(hf upload OWNER/NAME TARGET): the weights and their card. With --to algoperf, TARGET is
a folder that gets an AlgoPerf submission for the self-tuning ruleset: submission.py and
the weights."""


# Of a weights file's header, what the new file gets from what it holds.
MADE_ANEW = ("architecture", "config", "lopax", "schema", "checksum", "format", "file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    source: Annotated[str, tyro.conf.Positional, flags.named("SOURCE")]
    """A weights file, hf://owner/name, or the name of bundled weights (`lopax list
    weights`)."""
    target: Annotated[Path, tyro.conf.Positional, flags.named("TARGET")]
    """The file, or for --to hub-folder and --to algoperf the folder, to write."""
    to: Literal["safetensors", "hub-folder", "algoperf"] = "safetensors"
    """A weights file, a folder for the Hub, or a submission folder."""
    framework: Literal["jax", "pytorch"] = "jax"
    """What an AlgoPerf submission is for."""
    name: Annotated[str | None, flags.named("NAME")] = None
    """The architecture, if it cannot be told from the arrays."""
    licence: str = ""
    """Licence of the weights, written into the header."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(ConvertFlags, argv, "convert", ABOUT)
    from lopax.pretrained import hub, list_weights, read_weights, weights_card
    from lopax.theta import load_optimizer, save_theta

    source = Path(args.source)
    bundled = not source.exists() and args.source in list_weights()
    named = bundled or args.source.startswith(hub.SCHEME)
    file = read_weights(args.source if named else source.absolute())
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
    if args.to == "hub-folder":
        about = weights_card(args.source) if bundled else _card_beside(source)
        own: dict[str, Any] = {
            k: v for k, v in file.header.items() if k not in MADE_ANEW
        }
        licence = args.licence or own.get("licence", "")
        own |= {"licence": licence} if licence else {}
        make_folder(args.target)
        weights = args.target / hub.WEIGHTS
        save_theta(weights, theta, optimizer, **own)
        print(weights)
        print(hub.write_card(args.target, read_weights(weights).header, about))
        return 0
    header: dict[str, Any] = {"converted_from": source.name}
    if args.licence:
        header["licence"] = args.licence
    save_theta(args.target, theta, optimizer, **header)
    print(f"{args.target}: weights of {optimizer.name}")
    return 0


def _card_beside(weights: Path) -> str | None:
    """The text of NAME.md beside NAME.safetensors, if there is one."""
    card = weights.with_suffix(".md")
    return card.read_text(encoding="utf-8") if card.is_file() else None
