"""`lopax explain WEIGHTS`: what a meta-trained rule sees and does, on one page."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lopax.cli import flags
from lopax.cli.stdio import made, note, say

ABOUT = """Look into a meta-trained optimizer and write what was found as one HTML page:
where its steps go beside those of Adam, Muon and sign-SGD, what its scheduler answers
to time and loss, which inputs its network uses, what it does with one gradient and with
rescaled problems; for coordinate-wise recurrent rules its memory, resting points,
momentum, clipping, schedule and adaptation.

lopax explain celo
lopax explain runs/celo/weights.safetensors --task digits_conv --num-steps 1000"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainFlags:
    weights: Annotated[str, tyro.conf.Positional, flags.named("WEIGHTS")]
    """A weights file, or the name of bundled weights (`lopax list weights`)."""
    architecture: Annotated[str | None, flags.named("NAME")] = None
    """The architecture, if it cannot be told from the file."""
    task: Annotated[str | None, flags.named("NAME")] = None
    """What to train while looking (`lopax list tasks`, or quadratics); default: a
    held-out network, or quadratics for coordinate-wise recurrent rules."""
    num_steps: int = 300
    """Updates of a run; what learned optimizers are told as well."""
    seeds: int = 2
    """Runs behind every final loss."""
    out: Annotated[Path | None, flags.named("PATH")] = None
    """The page to write; default explain-NAME.html here."""


def main(argv: Sequence[str]) -> int:
    args = flags.parse(ExplainFlags, argv, "explain", ABOUT)
    from lopax.analysis.explain import Runs, explain, write_page
    from lopax.pretrained import read_weights
    from lopax.theta import load_optimizer

    optimizer, theta = load_optimizer(read_weights(args.weights), args.architecture, {})
    name = _title(args.weights, optimizer.name)
    explanation = explain(
        optimizer,
        theta,
        name=name,
        task_name=args.task,
        runs=Runs(args.num_steps, tuple(range(args.seeds))),
        say=note,
    )
    target = args.out or Path(f"explain-{name.replace(' ', '-')}.html")
    write_page(explanation, target, "lopax explain " + shlex.join(argv))
    for sentence in explanation.headlines:
        say(f"- {sentence}")
    made("page", target)
    return 0


def _title(weights: str, architecture: str) -> str:
    """A name for the page: the file's, or its folder's for the usual file names."""
    path = Path(weights)
    usual = path.stem in ("theta", "weights", "checkpoint")
    stem = path.absolute().parent.name if usual else path.stem
    return stem if architecture in stem else f"{architecture} {stem}"
