"""`lopax train RECIPE` and `lopax train --resume RUN`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from lopax._core.config import config_hash
from lopax._core.errors import ConfigError, MissingExtra
from lopax.cli import flags
from lopax.cli.stdio import made, note, say

ABOUT = """Meta-train a learned optimizer.

lopax train recipes/celo.toml [--out FOLDER] [--outer.learning-rate 1e-3 ...]
lopax train --resume FOLDER

Values come from the defaults, then the recipe, then the flags; the merged
configuration is saved with the run. Every field of lopax.meta.RunConfig has a flag but
the tables `settings`, `start_parts`, `tasks`, `phases`, `population`:
lopax train RECIPE -- --help. Ctrl-C saves and stops; a run killed in any other way
resumes from its last checkpoint, bit for bit, on as many devices as there are then.

Several processes, on one machine or many, with a folder they share:
  srun lopax train recipes/celo.toml --distributed --out FOLDER
  lopax train recipes/celo.toml --distributed --out FOLDER \\
    --coordinator HOST:PORT --processes 2 --process-id 0     (and 1 on the other)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags:
    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A TOML recipe."""
    resume: Path | None = None
    """The folder of a run to continue."""
    out: Path | None = None
    """The folder of a new run; default runs/NAME-HASH."""
    devices: int | None = None
    """Spread particles (of a population: members) over this many devices. Default: on
    a CPU a virtual one for each core, as far as they divide evenly; one accelerator."""
    distributed: bool = False
    """This is one of several processes that share the particles; the others run the
    same command. Slurm, Open MPI and TPU pods are read from the environment."""
    coordinator: str | None = None
    """HOST:PORT of process 0, elsewhere than under those."""
    processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which one this is; 0 writes the files."""
    track: tuple[str, ...] = ()
    """Also log to these: tensorboard, wandb."""


def main(argv: Sequence[str]) -> int:
    own, rest = _split(argv)
    flags.check_counts(own, may_be_zero=("process_id",))
    from lopax import meta
    from lopax.meta import distributed

    if own.devices is not None or not own.distributed:
        distributed.request_cpu_devices(own.devices)

    cluster = distributed.Cluster(
        coordinator=own.coordinator,
        processes=own.processes,
        process_id=own.process_id,
    )
    if own.distributed:
        distributed.connect(cluster)
    elif own.coordinator is not None:
        raise ConfigError("--coordinator is for --distributed jobs; give both")
    if own.resume is not None:
        if own.recipe is not None or own.out is not None or rest:
            raise ConfigError(
                "--resume continues a run as it was configured; it takes no recipe and "
                "no other settings"
            )
        run, folder = meta.read_config(own.resume), own.resume
    else:
        run = meta.RunConfig() if own.recipe is None else meta.load_recipe(own.recipe)
        if rest:
            tables = ("settings", "start_parts", "tasks", "phases", "population")
            run = flags.override(run, rest, "train", tables)
        folder = own.out or Path("runs") / f"{run.name}-{config_hash(run, 8)}"
    return execute(
        run,
        folder,
        resume=own.resume is not None,
        devices=own.devices,
        track=own.track,
    )


def _split(argv: Sequence[str]) -> tuple[TrainFlags, list[str]]:
    """Our own flags, and those of the configuration."""
    args = list(argv)
    if "--" in args:
        at = args.index("--")
        return flags.parse(TrainFlags, args[:at], "train", ABOUT), args[at + 1 :]
    return flags.parse_known(TrainFlags, args, "train", ABOUT)


def execute(
    run: Any,
    folder: Path,
    *,
    resume: bool = False,
    devices: int | None = None,
    track: Sequence[str] = (),
) -> int:
    """Trains in the foreground with progress; returns the exit code.

    `devices`: as for the command; a CPU has as many as were requested.
    """
    import jax

    from lopax import evaluate, meta
    from lopax.cli.console import TrainingDisplay
    from lopax.meta import distributed, tracking

    families = meta.build_families(run.tasks)
    mesh = None
    if devices is not None:
        if len(jax.devices()) < devices:
            raise ConfigError(
                f"--devices {devices}: there are only {len(jax.devices())}"
            )
        mesh = distributed.particle_mesh(jax.devices()[:devices])
    elif jax.process_count() > 1:
        mesh = distributed.particle_mesh()
    else:
        mesh = distributed.default_mesh(run)
    first = jax.process_index() == 0
    trackers = [tracking.tracker(name, run, folder) for name in track if first]
    spread = "" if mesh is None else f" ({mesh.size} devices)"
    note(f"run folder: {folder}{spread}")
    with stop_on_signal() as should_stop, TrainingDisplay(run.total_steps) as display:
        outcome = meta.train(
            run,
            families,
            folder,
            mesh=mesh,
            resume=resume,
            evaluate=evaluator(run),
            listener=tracking.combine([display, *trackers]) if first else None,
            should_stop=should_stop,
        )
    if not outcome.finished:
        print(
            f"stopped after a clean save; continue with: lopax train --resume {folder}",
            file=sys.stderr,
        )
        return 130
    rate = outcome.inner_steps / max(outcome.seconds, 1e-9)
    say(
        f"{run.total_steps} outer steps, {outcome.inner_steps:,.0f} inner steps, "
        f"{outcome.seconds:.0f} s ({rate:,.0f} inner steps/s)"
    )
    made("weights", folder / "weights.safetensors")
    if run.population is not None and first:
        with contextlib.suppress(MissingExtra):  # the lineage can be drawn later, too
            say(f"family tree: {evaluate.write_family_tree(folder)}")
    return 0


def evaluator(run: Any) -> Any:
    """Final training losses on the run's validation tasks, mean over two seeds; of
    agents the final returns, too."""
    from lopax import evaluate, tasks

    made = {name: tasks.task(name) for name in run.eval_tasks}

    def score(phase: Any, theta: Any) -> Mapping[str, float]:
        spec = evaluate.learned(run.architecture, theta, **run.settings_of(phase))
        config = evaluate.RunConfig(
            num_steps=run.eval_steps, eval_every=run.eval_steps, eval_batches=1
        )
        found = {}
        for name, task in made.items():
            result = evaluate.run(spec, task, config, seeds=[0, 1])
            losses = evaluate.final_loss(result.train)
            found[name] = float(losses.mean())
            if "test/return" in result.metrics:
                returns = result.metrics["test/return"][..., -1]
                found[f"{name} return"] = float(returns.mean())
        return found

    return score


class stop_on_signal:
    """While active, SIGINT and SIGTERM ask for a stop; a second one stops at once."""

    def __enter__(self) -> Callable[[], bool]:
        self._asked = False
        self._old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in self._old:
            signal.signal(number, self._ask)
        return lambda: self._asked

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not by `print`: the signal may have come inside one, which lets no other in.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step (again to stop at once)\n")
