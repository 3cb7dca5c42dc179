"""`lopax tune BASELINE TASK`: the learning-rate sweep of one baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from lopax._core.errors import ConfigError
from lopax.cli import flags

ABOUT = """Sweep a baseline's learning rate on a task (name or Python file) and print
the final smoothed training loss for each of the 15 values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneFlags:
    baseline: Annotated[str, tyro.conf.Positional]
    task: Annotated[str, tyro.conf.Positional]
    num_steps: int = 1_000
    seeds: int = 3


def main(argv: Sequence[str]) -> int:
    args = flags.parse(TuneFlags, argv, "tune", ABOUT)
    from lopax import evaluate
    from lopax.cli.console import table

    spec = evaluate.optimizer_spec(args.baseline)
    if not spec.tunable:
        raise ConfigError(f"{args.baseline!r} has no learning rate to tune")
    config = evaluate.RunConfig(num_steps=args.num_steps, eval_every=args.num_steps)
    problem = evaluate.user_problem(args.task, config)
    result = evaluate.run(spec, problem.make(), config, list(range(args.seeds)))
    tuned = evaluate.tune(result.train, result.diverged)
    rows = [
        [f"{rate:g}", f"{loss:.4g}", "best" if i == tuned.index else ""]
        for i, (rate, loss) in enumerate(
            zip(spec.learning_rates, tuned.final, strict=True)
        )
    ]
    table(f"{args.baseline} on {args.task}", ["learning rate", "final loss", ""], rows)
    if tuned.at_edge:
        print("the best value is at the edge of the grid")
    return 0
